"""Scenes composed of scikit-learn's digits, 64 pixels: detection without a download, on a CPU."""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def scenes(detector: dict[str, Any], attention: str = "none") -> ConfigDict:
    """A detector on ResNet-8, as SSD is trained."""
    config = set_model(default_config(), "resnet8_cifar", attention=attention, num_classes=10)
    config.model.detector = ConfigDict(detector)
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


def two_stages(detector: dict[str, Any], attention: str = "none") -> ConfigDict:
    """An R-CNN, which needs fewer passes and smaller steps."""
    config = scenes({**detector, **RCNN}, attention)
    config.num_epochs = 12
    config.eval_every_epochs = 4
    config.optimizer.learning_rate = 0.02
    return config


# Maps of 16², 8² and 4² positions, anchors of 7 to 32 pixels.
SSD = {
    "name": "ssd",
    "base_levels": 1,
    "extras": ((32, 64, 2), (32, 64, 2)),
    "ratios": ((1.5, 2.0),) * 3,
    "scales": (0.14, 0.24, 0.36),
    "detections": 50,
    "candidates": 50,
}
# Maps of 32², 16² and 8² positions, anchors of 8, 16 and 32 pixels.
RCNN = {
    "base_levels": 2,
    "fixed_statistics": False,
    "width": 32,
    "anchor_scale": 4.0,
    "proposals": 64,
    "hidden": 128,
    "anchor_samples": 64,
    "samples": 32,
    "detections": 50,
    "candidates": 200,
}
FASTER = {"name": "faster_rcnn"}
MASK = {"name": "mask_rcnn", "mask_width": 32}

EXPERIMENTS = {
    "ssd": Experiment("a small SSD, what runs without a name", partial(scenes, SSD)),
    "ssd_cgd": Experiment("the same with CGD in its blocks", partial(scenes, SSD, "cgd")),
    "faster": Experiment("a small Faster R-CNN", partial(two_stages, FASTER)),
    "faster_cgd": Experiment("the same with CGD", partial(two_stages, FASTER, "cgd")),
    "mask": Experiment("a small Mask R-CNN", partial(two_stages, MASK)),
    "mask_cgd": Experiment("the same with CGD", partial(two_stages, MASK, "cgd")),
}


def get_config(experiment: str = "ssd") -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
