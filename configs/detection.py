"""SSD300 on MobileNet with and without CGD, on VOC and COCO, as CGD's authors trained it."""

from functools import partial

from ml_collections import ConfigDict

from sop.config import Experiment, choose, set_model
from sop.config import get_config as default_config


def ssd300(attention: str) -> ConfigDict:
    """What both data sets have in common; old mmdetection's SSD."""
    config = set_model(default_config(), "mobilenet", attention=attention)
    config.model.detector = ConfigDict(
        {
            "name": "ssd",
            "inclusive": True,
            "strides": (8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
        }
    )
    # They start from their classification networks.
    config.init_from = f"runs/imagenet_mobilenet_{'cgd' if attention == 'cgd' else 'gavp'}"
    config.input.train_transforms = (
        "photometric | expand(4.0) | min_iou_crop | resize(300, 300) | flip"
    )
    config.input.eval_transforms = "resize(300, 300)"
    # Pixels of 0 to 255 without their mean.
    config.input.mean = (0.485, 0.456, 0.406)
    config.input.deviation = (1 / 255,) * 3
    config.eval_batch_size = 64
    config.optimizer.weight_decay = 4e-5
    return config


def voc(attention: str = "none") -> ConfigDict:
    """24 epochs of ten passes each, ÷10 after 16 and 20; 500 steps of warm-up."""
    config = ssd300(attention)
    config.model.num_classes = 20
    config.input.dataset = "voc/0712"
    config.input.train_split = "train+validation"
    config.input.eval_split = "test"
    config.batch_size = 32
    config.num_epochs = 240
    config.eval_every_epochs = 10
    config.optimizer.learning_rate = 1e-3
    config.schedule.boundaries = (160, 200)
    config.schedule.warmup_epochs = 500 / (16551 // 32)
    config.schedule.warmup_learning_rate = 1e-3 / 3
    return config


def coco(attention: str = "none") -> ConfigDict:
    """24 epochs of five passes each, ÷10 after 16 and 22; 500 steps of warm-up."""
    config = ssd300(attention)
    config.model.num_classes = 80
    config.model.detector.scales = (0.07, 0.15, 0.9)
    config.input.dataset = "coco/2017"
    config.input.train_split = "train"
    config.input.eval_split = "validation"
    config.batch_size = 64
    config.num_epochs = 120
    config.eval_every_epochs = 5
    config.optimizer.learning_rate = 2e-3
    config.schedule.boundaries = (80, 110)
    config.schedule.warmup_epochs = 500 / (118287 // 64)
    config.schedule.warmup_learning_rate = 2e-3 / 3
    return config


EXPERIMENTS = {
    "voc_ssd300_mobilenet": Experiment("SSD300 on MobileNet, VOC 07 + 12", voc),
    "voc_ssd300_mobilenet_cgd": Experiment("the same with CGD", partial(voc, "cgd")),
    "coco_ssd300_mobilenet": Experiment("SSD300 on MobileNet, COCO", coco),
    "coco_ssd300_mobilenet_cgd": Experiment("the same with CGD", partial(coco, "cgd")),
}


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
