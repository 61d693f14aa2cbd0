"""ResNeXt-50 with GFGP (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "resnext50_32x4d"
    config.model.pool.name = "gfgp"
    return config
