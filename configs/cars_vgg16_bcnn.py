"""Cars-196 with B-CNN VGG-16."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.vgg16_bilinear("cars", "bcnn")
