"""VGG-16-mod with GFGP (Kobayashi, ICCV 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gfgp()
    config.model.backbone = "vgg16_mod"
    config.model.pool.name = "gfgp"
    return config
