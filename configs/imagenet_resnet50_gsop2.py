"""GSoP-Net2 ResNet-50 (Gao et al., CVPR 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gsop_net2()
    config.model.backbone = "resnet50"
    config.model.attention.name = "gsop"
    config.model.representation.name = "mpncov"
    return config
