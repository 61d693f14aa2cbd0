"""Scraps of text in 22 typefaces, 32 pixels: rendered here, no download, minutes on a CPU."""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def recipe(representation: str = "gavp", attention: str = "none") -> ConfigDict:
    """Flips are left out: letters have a direction."""
    config = set_model(
        default_config(),
        "resnet8_cifar",
        attention=attention,
        representation=representation,
        num_classes=22,
    )
    config.input.dataset = "typefaces"
    config.input.train_transforms = "pad_crop(32, 2)"
    config.input.eval_transforms = ""
    config.input.mean = (0.656,) * 3
    config.input.deviation = (0.248,) * 3
    config.input.cache = True
    config.input.num_workers = 0
    config.batch_size = 64
    config.eval_batch_size = 88
    config.num_epochs = 20
    config.log_every_steps = 10
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-3
    config.schedule.name = "cosine"
    return config


def experiments(recipe: Callable[..., ConfigDict]) -> dict[str, Experiment]:
    return {
        "gavp": Experiment("ResNet-8, average pooling", recipe),
        "mpncov": Experiment("ResNet-8 + fast MPN-COV", partial(recipe, "mpncov")),
        "gsop": Experiment("ResNet-8 + GSoP in its blocks", partial(recipe, attention="gsop")),
        "cgd": Experiment("ResNet-8 + CGD in its blocks", partial(recipe, attention="cgd")),
    }


EXPERIMENTS = experiments(recipe)


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
