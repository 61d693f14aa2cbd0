"""MobileNet, the baseline of CGD."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.cgd_mobilenet()
    config.model.backbone = "mobilenet"
    return config
