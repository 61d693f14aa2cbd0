"""Every key that a config may have, with its default: the base that experiments change."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Keys set to `None` here (placeholders) mean "the default of what was chosen"."""
    config = ConfigDict()
    config.seed = 0
    config.dtype = "float32"  # of activations: 'float32' or 'bfloat16'; parameters stay float32

    config.model = ConfigDict()
    config.model.backbone = "resnet50"
    config.model.num_classes = 1000

    config.model.attention = ConfigDict({"name": "none"})
    config.model.pool = ConfigDict({"name": placeholder(str)})
    config.model.representation = ConfigDict({"name": placeholder(str)})

    config.input = ConfigDict()
    config.input.dataset = "imagenet2012"  # a TFDS name ('cifar10:3.0.2'), 'digits', 'folder:/path'
    config.input.data_dir = placeholder(str)  # of TFDS; None: TFDS's own default
    config.input.train_split = "train"
    config.input.eval_split = "validation"
    config.input.train_transforms = "random_resized_crop(224) | flip"
    config.input.eval_transforms = "resize_short(256) | center_crop(224)"
    config.input.normalization = "imagenet"
    config.input.cache = False  # keep decoded images in memory and augment whole batches
    config.input.num_workers = 2  # threads that decode; 0: the training thread itself
    config.input.bad_images = "stop"  # or 'skip': count them and go on

    config.batch_size = 256  # over all devices
    config.eval_batch_size = 256
    config.num_epochs = 90
    config.label_smoothing = 0.0
    config.sync_batch_norm = False

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = placeholder(float)  # of the whole gradient
    # Pairs (regular expression searched in a parameter's path 'a/b/kernel', value); last wins.
    config.optimizer.lr_multipliers = ()
    config.optimizer.weight_decays = ()
    config.optimizer.frozen = ()  # regular expressions
    config.optimizer.freeze_batch_norm = True  # frozen layers' statistics too

    config.schedule = ConfigDict()
    config.schedule.name = "step"  # 'step', 'cosine', 'log' or 'constant'
    config.schedule.warmup_epochs = 0.0
    config.schedule.boundaries = (30, 60, 90)  # epochs, of 'step'
    config.schedule.factor = 0.1  # of 'step'
    config.schedule.final_learning_rate = 0.0  # of 'cosine' and 'log'

    config.init_from = ""  # a checkpoint folder or a work folder to start from
    config.stages = ()  # one dict of changed keys for each successive stage of training

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 3  # newest ones, beside the best by top-1
    config.checkpoint.every_steps = placeholder(int)  # None: at the end of each epoch
    config.eval_every_epochs = 1
    config.log_every_steps = 50
    config.profile = 0  # steps to trace into WORKDIR/profile, after the first ones
    return config
