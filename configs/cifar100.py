"""CIFAR-100: padded by 4, random crop 32, flip. In the table, published errors in %."""

from functools import partial

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def _recipe(backbone, *, num_epochs, learning_rate, boundaries, **model) -> ConfigDict:
    config = set_model(default_config(), backbone, num_classes=100, **model)
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


_preresnet164 = partial(_recipe, "preresnet164_cifar")
gavp = partial(_preresnet164, num_epochs=140, learning_rate=0.1, boundaries=(90, 120))
mpncov = partial(
    _preresnet164,
    num_epochs=110,
    learning_rate=0.25,
    boundaries=(80, 95),
    representation="mpncov",
)

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
}


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
