"""ResNet-101, the baseline of fast MPN-COV."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "resnet101"
    return config
