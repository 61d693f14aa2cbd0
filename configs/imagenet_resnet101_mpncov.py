"""fast MPN-COV ResNet-101 (Li et al., CVPR 2018)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "resnet101"
    config.model.representation.name = "mpncov"
    return config
