"""CIFAR-10: padded by 4, random crop 32, flip; by the recipes of CGD."""

from functools import partial

from ml_collections import ConfigDict

from configs.cifar100 import cgd_preresnet110, cgd_wrn28_10
from sop.config import Experiment, choose

preresnet110 = partial(cgd_preresnet110, "cifar10", 10)
wrn28_10 = partial(cgd_wrn28_10, "cifar10", 10)

EXPERIMENTS = {
    "preresnet110_gavp": Experiment("pre-activation ResNet, recipe of CGD", preresnet110),
    "preresnet110_cgd": Experiment("the same + CGD", partial(preresnet110, attention="cgd")),
    "wrn28_10_gavp": Experiment("wide ResNet-28-10, recipe of CGD", wrn28_10),
    "wrn28_10_cgd": Experiment("the same + CGD", partial(wrn28_10, attention="cgd")),
}


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
