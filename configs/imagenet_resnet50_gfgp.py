"""ResNet-50 with GFGP (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "resnet50"
    config.model.pool.name = "gfgp"
    return config
