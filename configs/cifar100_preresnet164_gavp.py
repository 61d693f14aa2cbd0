"""Pre-activation ResNet-164, the baseline of MPN-COV."""

from configs.recipes import cifar100


def get_config():
    config = cifar100.gavp()
    config.model.backbone = "preresnet164_cifar"
    return config
