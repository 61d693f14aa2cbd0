"""FGVC-Aircraft with fast MPN-COV ResNet-101, by the recipe of its TensorFlow code."""

from configs.recipes import fine_grained


def get_config():
    config = fine_grained.resnet_mpncov("aircraft", depth=101)
    config.num_epochs = 20
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    return config
