"""ResNet-50 with strided convolutions (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "resnet50"
    config.model.pool.name = "skip"
    return config
