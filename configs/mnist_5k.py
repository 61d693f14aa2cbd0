"""5,000 MNIST digits, 28 pixels: no download. `--config.input.train_split='train[:100]'` trains on
ten of each class.
"""

from ml_collections import ConfigDict

from configs import typefaces
from sop.config import choose


def recipe(representation: str = "gavp", attention: str = "none") -> ConfigDict:
    """That of the typefaces, on 300 of each class; 100 validate."""
    config = typefaces.recipe(representation, attention)
    config.model.num_classes = 10
    config.input.dataset = "mnist_5k"
    config.input.train_split = "train[:3000]"
    config.input.eval_split = "train[3000:]"
    config.input.train_transforms = "pad_crop(28, 2)"
    config.input.mean = (0.131,) * 3
    config.input.deviation = (0.308,) * 3
    config.batch_size = 50
    config.eval_batch_size = 100
    config.num_epochs = 10
    return config


EXPERIMENTS = typefaces.experiments(recipe)


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
