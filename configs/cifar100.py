"""CIFAR-100: padded by 4, random crop 32, flip. In the table, published errors in %."""

from functools import partial

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def recipe(
    dataset,
    backbone,
    *,
    num_classes,
    normalization,
    num_epochs,
    learning_rate,
    boundaries,
    **model,
) -> ConfigDict:
    """What all experiments on 32×32 images have in common."""
    config = set_model(default_config(), backbone, num_classes=num_classes, **model)
    config.input.dataset = dataset
    config.input.eval_split = "test"
    config.input.train_transforms = "pad_crop(32, 4) | flip"
    config.input.eval_transforms = ""
    config.input.normalization = normalization
    config.input.cache = True
    config.batch_size = 128
    config.num_epochs = num_epochs
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries = boundaries
    return config


# The network of fast MPN-COV's TensorFlow code.
_preresnet164 = partial(
    recipe,
    "cifar100",
    "preresnet164_cifar",
    num_classes=100,
    normalization="cifar100_tf",
    shortcut="activation",
    initialization="glorot",
)
gavp = partial(_preresnet164, num_epochs=140, learning_rate=0.1, boundaries=(90, 120))


def mpncov(**model) -> ConfigDict:
    config = _preresnet164(
        num_epochs=110,
        learning_rate=0.25,
        boundaries=(80, 95),
        representation="mpncov",
        **model,
    )
    config.model.representation.initialization = "lecun"
    return config


# CGD's README names the recipes of pytorch-classification, which normalises CIFAR-100 so, too.
_cgd_recipe = partial(recipe, normalization="cifar10", learning_rate=0.1)


def _decayed(config: ConfigDict) -> ConfigDict:
    """With CGD's own weight decay, where there is CGD."""
    if config.model.attention.name == "cgd":
        config.optimizer.weight_decays = (("/attention/", 4e-5),)
    return config


def cgd_preresnet110(dataset: str = "cifar100", num_classes: int = 100, **model) -> ConfigDict:
    """ "110" has 18 bottlenecks in each stage there."""
    return _decayed(
        _cgd_recipe(
            dataset,
            "preresnet110_cifar",
            num_classes=num_classes,
            block="bottleneck",
            stage_size=18,
            num_epochs=164,
            boundaries=(81, 122),
            **model,
        )
    )


def cgd_wrn28_10(dataset: str = "cifar100", num_classes: int = 100, **model) -> ConfigDict:
    config = _cgd_recipe(
        dataset,
        "wrn28_10_cifar",
        num_classes=num_classes,
        dropout=0.3,
        num_epochs=200,
        boundaries=(60, 120, 160),
        **model,
    )
    config.optimizer.weight_decay = 5e-4
    config.schedule.factor = 0.2
    return _decayed(config)


EXPERIMENTS = {
    "preresnet164_gavp": Experiment("pre-activation ResNet-164: 24.33", gavp),
    "preresnet164_mpncov": Experiment("the same + fast MPN-COV: 19.91", mpncov),
    # Published without code or recipe: those of the two above.
    "preresnet164_gsop1": Experiment(
        "GSoP-Net1 of ResNet-164: 20.86", partial(gavp, attention="gsop")
    ),
    "preresnet164_gsop2": Experiment(
        "GSoP-Net2 of ResNet-164: 18.58", partial(mpncov, attention="gsop")
    ),
    "preresnet110_gavp": Experiment("pre-activation ResNet, recipe of CGD", cgd_preresnet110),
    "preresnet110_cgd": Experiment("the same + CGD", partial(cgd_preresnet110, attention="cgd")),
    "wrn28_10_gavp": Experiment("wide ResNet-28-10, recipe of CGD", cgd_wrn28_10),
    "wrn28_10_cgd": Experiment("the same + CGD", partial(cgd_wrn28_10, attention="cgd")),
}


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
