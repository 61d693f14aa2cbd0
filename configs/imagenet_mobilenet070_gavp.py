"""MobileNet ×0.7, the baseline of CGD."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.cgd_mobilenet()
    config.model.backbone = "mobilenet"
    config.model.multiplier = 0.7
    return config
