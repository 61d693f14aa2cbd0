"""Crops of photographs of brick, grass and gravel, 32 pixels: no download, a minute on a CPU."""

from ml_collections import ConfigDict

from configs import typefaces
from sop.config import choose


def recipe(representation: str = "gavp", attention: str = "none") -> ConfigDict:
    """That of the typefaces, but materials look the same in the mirror."""
    config = typefaces.recipe(representation, attention)
    config.model.num_classes = 3
    config.input.dataset = "textures"
    config.input.train_transforms = "pad_crop(32, 2) | flip"
    config.input.mean = (0.463,) * 3
    config.input.deviation = (0.140,) * 3
    config.batch_size = 64
    config.eval_batch_size = 96
    config.num_epochs = 5
    return config


EXPERIMENTS = typefaces.experiments(recipe)


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
