"""iSQRT-COV on scikit-learn's 8×8 handwritten digits: real data, no download, minutes on a CPU."""

from configs import default


def get_config():
    config = default.get_config()
    config.model.backbone = "resnet8_cifar"
    config.model.num_classes = 10
    config.model.representation.name = "mpncov"

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
    config.log_every_steps = 22
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-3
    config.schedule.name = "cosine"
    return config
