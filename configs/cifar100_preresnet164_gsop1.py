"""GSoP-Net1 of ResNet-164; it was published without a recipe."""

from configs.recipes import cifar100


def get_config():
    config = cifar100.gavp()
    config.model.backbone = "preresnet164_cifar"
    config.model.attention.name = "gsop"
    return config
