"""Fine-tuning without a download: weights of digits 0–4, a new B-CNN head for 5–9, two stages.

`--config.init_from=` trains the same steps from scratch.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.input.dataset = "digits/5-9"
    config.model.num_classes = 5
    config.model.representation.name = "bcnn"
    config.init_from = "runs/digits04_resnet8_gavp"
    config.batch_size = 32
    config.log_every_steps = 22
    config.schedule.name = "constant"
    config.stages = (
        {"num_epochs": 1, "optimizer": {"frozen": ("features/",), "learning_rate": 1.0}},
        {"num_epochs": 2, "optimizer": {"learning_rate": 0.1}},
    )
    return config
