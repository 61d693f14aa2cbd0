"""FGVC-Aircraft with fast MPN-COV ResNet-50."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.resnet_mpncov("aircraft", depth=50)
