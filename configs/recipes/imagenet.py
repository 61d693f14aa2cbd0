"""ImageNet at 224 pixels, single crop: a function for each published recipe."""

from ml_collections import ConfigDict

from configs import default


def gsop_net1() -> ConfigDict:
    return _recipe(num_epochs=95, batch_size=384, boundaries=(30, 60, 90))


def gsop_net2() -> ConfigDict:
    return _recipe(num_epochs=65, batch_size=384, boundaries=(30, 45, 60))


def mpncov() -> ConfigDict:
    """fast MPN-COV in PyTorch."""
    return _recipe(num_epochs=65, batch_size=160, boundaries=(30, 45, 60))


def mpncov_tensorflow() -> ConfigDict:
    config = _recipe(num_epochs=85, batch_size=160, boundaries=(35, 55, 75))
    config.schedule.warmup_epochs = 5.0
    return config


def gfgp() -> ConfigDict:
    config = _recipe(num_epochs=120, batch_size=256, boundaries=(30, 60, 90))
    config.input.train_transforms += " | color_jitter(0.4, 0.4, 0.4) | lighting(0.1)"
    return config


def cgd_resnet() -> ConfigDict:
    return _recipe(num_epochs=101, batch_size=256, boundaries=(31, 61, 81))


def cgd_mobilenet() -> ConfigDict:
    config = _recipe(num_epochs=91, batch_size=256, boundaries=(31, 61))
    config.optimizer.weight_decay = 4e-5
    return config


def with_cgd(config: ConfigDict) -> ConfigDict:
    """The same with CGD, whose parameters have a weight decay of their own."""
    config.model.attention.name = "cgd"
    config.optimizer.weight_decays = (("/attention/", 4e-5),)
    return config


def _recipe(num_epochs, batch_size, boundaries):
    config = default.get_config()
    config.batch_size = batch_size
    config.num_epochs = num_epochs
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries = boundaries
    return config
