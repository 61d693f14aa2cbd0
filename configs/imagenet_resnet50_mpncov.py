"""fast MPN-COV ResNet-50 (Li et al., CVPR 2018)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "resnet50"
    config.model.representation.name = "mpncov"
    return config
