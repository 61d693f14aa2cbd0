"""VGG-16 with BatchNorm with max pooling (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "vgg16_gfgp"
    config.model.pool.name = "max"
    return config
