"""ResNet-50, the baseline of GSoP-Net and fast MPN-COV."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "resnet50"
    return config
