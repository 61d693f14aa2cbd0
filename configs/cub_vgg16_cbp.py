"""CUB-200-2011 with compact bilinear pooling (8,192) and VGG-16."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.vgg16_bilinear("cub", "compact_bilinear")
