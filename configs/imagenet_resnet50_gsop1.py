"""GSoP-Net1 ResNet-50 (Gao et al., CVPR 2019)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.gsop_net1()
    config.model.backbone = "resnet50"
    config.model.attention.name = "gsop"
    return config
