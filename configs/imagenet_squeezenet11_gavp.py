"""SqueezeNet 1.1, the baseline of CGD."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.cgd_mobilenet()
    config.model.backbone = "squeezenet1_1"
    return config
