"""fast MPN-COV ResNet-101 by the recipe of its TensorFlow code."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov_tensorflow()
    config.model.backbone = "resnet101"
    config.model.representation.name = "mpncov"
    return config
