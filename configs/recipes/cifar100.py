"""CIFAR-100 with pre-activation ResNets: padded by 4, random crop 32, flip."""

from ml_collections import ConfigDict

from configs import default


def gavp() -> ConfigDict:
    return _recipe(num_epochs=140, learning_rate=0.1, boundaries=(90, 120))


def mpncov() -> ConfigDict:
    return _recipe(num_epochs=110, learning_rate=0.25, boundaries=(80, 95))


def _recipe(num_epochs, learning_rate, boundaries):
    config = default.get_config()
    config.model.num_classes = 100
    config.input.dataset = "cifar100"
    config.input.eval_split = "test"
    config.input.train_transforms = "pad_crop(32, 4) | flip"
    config.input.eval_transforms = ""
    config.input.normalization = "cifar100"
    config.input.cache = True
    config.batch_size = 128
    config.num_epochs = num_epochs
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries = boundaries
    return config
