"""Scenes composed of scikit-learn's digits, 64 pixels: detection without a download, on a CPU."""

from functools import partial

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def ssd(attention: str = "none") -> ConfigDict:
    """A small SSD: maps of 16², 8² and 4² positions, anchors of 7 to 32 pixels."""
    config = set_model(default_config(), "resnet8_cifar", attention=attention, num_classes=10)
    config.model.detector = ConfigDict(
        {
            "name": "ssd",
            "base_levels": 1,
            "extras": ((32, 64, 2), (32, 64, 2)),
            "ratios": ((1.5, 2.0),) * 3,
            "scales": (0.14, 0.24, 0.36),
            "detections": 50,
            "candidates": 50,
        }
    )
    config.input.dataset = "digit_scenes"
    config.input.eval_split = "test"
    config.input.train_transforms = "photometric(hue=0.0) | resize(64, 64)"
    config.input.eval_transforms = "resize(64, 64)"
    config.input.mean = (0.5,) * 3
    config.input.deviation = (0.25,) * 3
    config.input.max_objects = 6
    config.input.num_workers = 1
    config.batch_size = 32
    config.eval_batch_size = 40
    config.num_epochs = 20
    config.eval_every_epochs = 5
    config.log_every_steps = 31
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 35.0
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    return config


EXPERIMENTS = {
    "ssd": Experiment("a small SSD on ResNet-8, what runs without a name", ssd),
    "ssd_cgd": Experiment("the same with CGD in its blocks", partial(ssd, "cgd")),
}


def get_config(experiment: str = "ssd") -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
