"""VGG-16-mod with max pooling (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "vgg16_mod"
    config.model.pool.name = "max"
    return config
