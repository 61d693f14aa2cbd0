"""Fine-tuning at 448 pixels on CUB, Aircraft and Cars; tests take the mean of image and mirror."""

from ml_collections import ConfigDict

from configs import default

# Data set of TFDS, its split for training, number of classes, transforms before the flip.
DATASETS = {
    "cub": ("caltech_birds2011", "train", 200, "resize_short(448) | center_crop(448)"),
    "aircraft": ("fgvc_aircraft", "train+validation", 100, "resize(512, 512) | center_crop(448)"),
    "cars": ("cars196", "train", 196, "resize(448, 448)"),
}


def resnet_mpncov(dataset: str, depth: int) -> ConfigDict:
    """Starts from imagenet_resnetDEPTH_mpncov as trained here; else set init_from."""
    config = _recipe(dataset)
    config.model.backbone = f"resnet{depth}"
    config.model.representation.name = "mpncov"
    config.init_from = f"runs/imagenet_resnet{depth}_mpncov"
    config.num_epochs = 100
    config.batch_size = 10
    config.optimizer.learning_rate = 1.2e-3
    config.optimizer.lr_multipliers = (("^classifier/", 5.0),)
    config.optimizer.weight_decay = 1e-3
    config.schedule.name = "constant"
    return config


def vgg16_mpncov(dataset: str) -> ConfigDict:
    """Starts from imagenet_vgg16_mpncov as trained here, with one layer as its classifier."""
    config = _recipe(dataset)
    config.model.backbone = "vgg16_bn"
    config.model.hidden = ()
    config.model.representation.name = "mpncov"
    config.init_from = "runs/imagenet_vgg16_mpncov"
    config.num_epochs = 40
    config.batch_size = 10
    config.optimizer.learning_rate = 3e-3
    config.optimizer.lr_multipliers = (("^classifier/", 20.0),)
    config.optimizer.weight_decay = 1e-4
    config.schedule.boundaries = (20,)
    return config


def vgg16_bilinear(dataset: str, representation: str) -> ConfigDict:
    """The classifier alone, then everything. Starts from torchvision's VGG-16, converted."""
    config = _recipe(dataset)
    config.model.backbone = "vgg16"
    config.model.representation.name = representation
    config.init_from = "runs/published_vgg16"
    config.num_epochs = 100
    config.optimizer.learning_rate = 1e-3
    # In both stages, as in the original's script.
    config.optimizer.lr_multipliers = (("^classifier/", 1000.0),)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decays = (("^classifier/", 0.0),)
    config.schedule.name = "constant"
    config.stages = (
        {"batch_size": 40, "optimizer": {"frozen": ("^features/",)}},
        {"batch_size": 10},
    )
    return config


def _recipe(dataset):
    config = default.get_config()
    name, train_split, num_classes, transforms = DATASETS[dataset]
    config.model.num_classes = num_classes
    config.input.dataset = name
    config.input.train_split = train_split
    config.input.eval_split = "test"
    config.input.train_transforms = f"{transforms} | flip"
    config.input.eval_transforms = f"{transforms} | mirror_views"
    config.eval_batch_size = 32
    return config
