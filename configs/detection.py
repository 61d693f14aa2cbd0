"""SSD300, Faster and Mask R-CNN with and without CGD, as CGD's authors trained them."""

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


def rcnn(detector: str, attention: str = "none", pool: str | None = None) -> ConfigDict:
    """12 epochs on COCO, ÷10 after 8 and 11; 500 steps of warm-up; stem and first stage frozen.

    A folder of COCO's own files: what TFDS prepares of it has no masks.
    """
    config = set_model(default_config(), "resnet50", attention=attention, pool=pool, num_classes=80)
    config.model.last_stride = 2  # GSoP's own is 1, but a pyramid's maps halve
    config.model.detector = ConfigDict({"name": detector, "inclusive": True})
    config.init_from = f"runs/imagenet_resnet50_{_CLASSIFIERS[attention, pool]}"
    config.input.dataset = "coco:~/coco"
    config.input.train_split = "train2017"
    config.input.eval_split = "val2017"
    config.input.train_transforms = "flip | resize_pad(1333, 800)"
    config.input.eval_transforms = "resize_pad(1333, 800)"
    config.batch_size = 16
    config.eval_batch_size = 8
    config.num_epochs = 12
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 35.0
    config.optimizer.frozen = (r"^features/(conv1|bn1|layer1_\d)/",)
    config.schedule.boundaries = (8, 11)
    config.schedule.warmup_epochs = 500 / (118287 // 16)
    config.schedule.warmup_learning_rate = 0.02 / 3
    return config


# The ImageNet experiment of the network that a detector starts from.
_CLASSIFIERS = {
    ("none", None): "gavp",
    ("cgd", None): "cgd",
    ("gsop", None): "gsop1",
    ("none", "gfgp"): "gfgp",
}

EXPERIMENTS = {
    "voc_ssd300_mobilenet": Experiment("SSD300 on MobileNet, VOC 07 + 12", voc),
    "voc_ssd300_mobilenet_cgd": Experiment("the same with CGD", partial(voc, "cgd")),
    "coco_ssd300_mobilenet": Experiment("SSD300 on MobileNet, COCO", coco),
    "coco_ssd300_mobilenet_cgd": Experiment("the same with CGD", partial(coco, "cgd")),
    "coco_faster_rcnn_resnet50": Experiment(
        "Faster R-CNN on ResNet-50 with FPN, COCO", partial(rcnn, "faster_rcnn")
    ),
    "coco_faster_rcnn_resnet50_cgd": Experiment(
        "the same with CGD", partial(rcnn, "faster_rcnn", "cgd")
    ),
    "coco_faster_rcnn_resnet50_gsop": Experiment(
        "the same with GSoP, not published", partial(rcnn, "faster_rcnn", "gsop")
    ),
    "coco_faster_rcnn_resnet50_gfgp": Experiment(
        "the same with GFGP, not published", partial(rcnn, "faster_rcnn", pool="gfgp")
    ),
    "coco_mask_rcnn_resnet50": Experiment(
        "Mask R-CNN on ResNet-50 with FPN, COCO", partial(rcnn, "mask_rcnn")
    ),
    "coco_mask_rcnn_resnet50_cgd": Experiment(
        "the same with CGD", partial(rcnn, "mask_rcnn", "cgd")
    ),
}


def get_config(experiment: str | None = None) -> ConfigDict:
    return choose(EXPERIMENTS, experiment)
