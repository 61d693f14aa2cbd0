"""ResNet-50 by the recipe of CGD: its baseline (He et al., arXiv 1907.09665)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.cgd_resnet()
    config.model.backbone = "resnet50"
    return config
