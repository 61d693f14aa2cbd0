"""ResNeXt-50 with strided convolutions (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "resnext50_32x4d"
    config.model.pool.name = "skip"
    return config
