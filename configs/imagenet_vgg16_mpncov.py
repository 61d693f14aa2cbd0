"""fast MPN-COV VGG-16 with BatchNorm (Li et al., CVPR 2018)."""

from configs.recipes import imagenet


def get_config():
    config = imagenet.mpncov()
    config.model.backbone = "vgg16_bn"
    config.model.representation.name = "mpncov"
    return config
