"""scikit-learn's 8×8 handwritten digits: real data, no download, minutes on a CPU."""

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def mpncov() -> ConfigDict:
    config = set_model(default_config(), "resnet8_cifar", representation="mpncov", num_classes=10)
    config.input.dataset = "digits"
    config.input.eval_split = "test"
    config.input.train_transforms = "pad_crop(8, 1)"
    config.input.eval_transforms = ""
    config.input.normalization = "digits"
    config.input.cache = True
    config.input.num_workers = 0
    config.batch_size = 64
    config.eval_batch_size = 120
    config.num_epochs = 30
    config.log_every_steps = 11
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-3
    config.schedule.name = "cosine"
    return config


def gavp04() -> ConfigDict:
    """The pre-training of `bcnn59`."""
    config = set_model(mpncov(), "resnet8_cifar", representation="gavp", num_classes=5)
    config.input.dataset = "digits/0-4"
    config.batch_size = 32
    config.num_epochs = 10
    return config


def bcnn59() -> ConfigDict:
    """Weights of digits 0–4, a new head for twenty images of 5–9; `--config.init_from=` starts from
    scratch. The rates are those that the study found: `results/`.
    """
    config = set_model(mpncov(), "resnet8_cifar", representation="bcnn", num_classes=5)
    config.input.dataset = "digits/5-9"
    config.input.train_split = "train[:20]"
    config.init_from = "runs/digits_gavp04"
    config.batch_size = 20
    config.eval_every_epochs = 20
    config.schedule.name = "constant"
    config.optimizer.learning_rate = 0.06
    config.optimizer.lr_multipliers = (("^classifier/", 30.0),)
    config.stages = (
        {"num_epochs": 20, "optimizer": {"frozen": ("^features/",)}},
        {"num_epochs": 20},
    )
    return config


EXPERIMENTS = {
    "mpncov": Experiment("ResNet-8 + fast MPN-COV, what runs without a name", mpncov),
    "gavp04": Experiment("ResNet-8 on the digits 0 to 4 alone", gavp04),
    "bcnn59": Experiment("the same fine-tuned on twenty of 5 to 9 with B-CNN, two stages", bcnn59),
}


def get_config(experiment: str = "mpncov") -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
