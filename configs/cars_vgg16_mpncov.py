"""Cars-196 with fast MPN-COV VGG-16."""

from configs.recipes import fine_grained


def get_config():
    return fine_grained.vgg16_mpncov("cars")
