"""VGG-16 with BatchNorm, its 7×7 map flattened: the baseline of fast MPN-COV."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "vgg16_bn"
    return config
