"""Digits 0–4 alone: the pre-training of `digits59_resnet8_bcnn.py`."""

from configs import digits


def get_config():
    config = digits.get_config()
    config.input.dataset = "digits/0-4"
    config.model.num_classes = 5
    config.model.representation.name = "gavp"
    config.batch_size = 32
    config.log_every_steps = 22
    config.num_epochs = 10
    return config
