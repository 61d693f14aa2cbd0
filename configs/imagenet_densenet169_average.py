"""DenseNet-169 with average pooling (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "densenet169"
    config.model.pool.name = "average"
    return config
