"""GSoP-Net2 of ResNet-164; it was published without a recipe."""

from configs.recipes import cifar100


def get_config():
    config = cifar100.mpncov()
    config.model.backbone = "preresnet164_cifar"
    config.model.attention.name = "gsop"
    config.model.representation.name = "mpncov"
    return config
