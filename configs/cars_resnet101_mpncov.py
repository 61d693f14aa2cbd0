"""Cars-196 with fast MPN-COV ResNet-101."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.resnet_mpncov("cars", depth=101)
