"""Pre-activation ResNet-164 with fast MPN-COV."""

from configs.recipes import cifar100


def get_config():
    config = cifar100.mpncov()
    config.model.backbone = "preresnet164_cifar"
    config.model.representation.name = "mpncov"
    return config
