"""Configs: the schema of all keys, their checks, experiments by name, the command line."""

from sop.config.experiments import Experiment, choose, set_model
from sop.config.schema import KEYS, get_config
from sop.config.validation import check, check_batches, flatten, stage_configs

__all__ = [
    "KEYS",
    "Experiment",
    "check",
    "check_batches",
    "choose",
    "flatten",
    "get_config",
    "set_model",
    "stage_configs",
]
