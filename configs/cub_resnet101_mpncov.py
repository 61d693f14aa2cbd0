"""CUB-200-2011 with fast MPN-COV ResNet-101."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.resnet_mpncov("cub", depth=101)
