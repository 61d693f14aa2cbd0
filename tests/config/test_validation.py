"""A config against the schema."""

import json

import pytest
from ml_collections import ConfigDict

from sop.config import check, check_batches, flatten, get_config, stage_configs
from sop.config.command_line import load
from sop.config.schema import KEYS
from sop.config.validation import as_json, from_json
from sop.errors import UsageError
from tests.launch import ROOT


def changed(**changes):
    config = get_config()
    for key, value in changes.items():
        *above, last = key.split("__")
        holder = config
        for name in above:
            holder = holder[name]
        with holder.ignore_type(), holder.unlocked():
            holder[last] = value
    return config


def test_the_default_passes():
    check(get_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__weight_decay": 0},  # a whole number is a number
        {"schedule__boundaries": [1, 2.5]},  # a list is as good as a tuple
        {"optimizer__clip_norm": 1.0},
        {"input__data_dir": None},
        {"input__mean": (0.5, 0.5, 0), "input__deviation": [1, 0.5, 0.2]},
        {"model__attention": ConfigDict({"name": "gsop", "reduction": 128})},
        {"model__representation": None},
        {"model__last_stride": 1},  # an option of the backbone
        {"optimizer__lr_multipliers": (("^head/", 10), (".*bias", 2.0))},
        {"checkpoint__every_steps": 100},
        {"optimizer__rule": ConfigDict({"name": "adamw", "b2": 0.95})},
        {"stages": ({"optimizer": {"rule": {"name": "lamb", "b1": 0.8}}},)},
        {"stages": ({"optimizer": {"learning_rate": 1}}, {"num_epochs": 3})},
    ],
)
def test_what_can_be_meant_passes(changes):
    check(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"typo": 1}, "There is no config key 'typo'"),
        ({"bach_size": 1}, "Did you mean 'batch_size'"),
        ({"optimizer__momentun": 0.5}, "'optimizer.momentun'. Did you mean 'optimizer.momentum'"),
        ({"momentum": 0.5}, "Did you mean 'optimizer.momentum'"),
        ({"model__atention": ConfigDict({"name": "none"})}, "Did you mean 'model.attention.name'"),
        ({"batch_size": 1.5}, "config.batch_size is 1.5 but must be a whole number"),
        ({"batch_size": True}, "config.batch_size is True but must be a whole number"),
        ({"optimizer__nesterov": 1}, "config.optimizer.nesterov is 1 but must be True or False"),
        ({"optimizer__momentum": "0.9"}, "config.optimizer.momentum is '0.9' but must be a number"),
        ({"optimizer__clip_norm": "x"}, "must be a number from 1e-12 to 1e+12 or None"),
        ({"schedule__boundaries": 3}, "config.schedule.boundaries is 3 but must be a tuple"),
        ({"seed": None}, "config.seed is None but must be a whole number"),
        ({"optimizer": 3}, "config.optimizer is 3 but must hold the keys"),
        ({"dtype": "float16"}, "must be 'float32' or 'bfloat16'"),
        ({"schedule__name": "steps"}, "must be 'step' or 'cosine' or 'log' or 'constant'"),
        ({"optimizer__learning_rate": 0.0}, "must be a number from 1e-12 to 1e+06"),
        (
            {"schedule__boundaries": (30, 30)},
            "number from 1e-06 to 1e+06 in ascending order",
        ),
        (
            {"schedule__boundaries": (30, 10)},
            "number from 1e-06 to 1e+06 in ascending order",
        ),
        ({"num_epochs": 0}, "config.num_epochs is 0 but must be a whole number from 1 to "),
        ({"batch_size": 0}, "config.batch_size is 0 but must be a whole number from 1 to "),
        (
            {"input__mean": (0.5, 0.5)},
            "config.input.mean is (0.5, 0.5) but must be (a number from 0",
        ),
        (
            {"input__mean": (124, 116, 104)},
            "must be (a number from 0 to 1, a number from 0 to 1, a",
        ),
        ({"input__deviation": (0, 1, 1)}, "must be (a number from 0.001 to 1000, a number from"),
        ({"mixup": -0.1}, "config.mixup is -0.1 but must be a number from 0 to 100"),
        ({"ema_decay": 1.0}, "number of at least 0 and below 1 or None"),
        ({"accumulation": 0}, "config.accumulation is 0 but must be a whole number from 1 to"),
        ({"label_smoothing": 1.0}, "must be a number of at least 0 and below 1"),
        ({"optimizer__clip_norm": 0.0}, "must be a number from 1e-12 to"),
        ({"optimizer__frozen": ("(",)}, "must be a tuple, each item a string that is a regular"),
        (
            {"optimizer__lr_multipliers": (("a", "b"),)},
            "regular expression and not empty, a number from 0 to 1e+06)",
        ),
        ({"stages": (3,)}, "config.stages is (3,) but must be a tuple, each item a dict"),
        ({"stages": ({"optimizer": {"momentun": 0}},)}, "In config.stages[0]: There is no config"),
        ({"stages": ({}, {"seed": "x"})}, "In config.stages[1]: config.seed is 'x' but must"),
        (
            {"stages": ({"seed": 1},)},
            "sets 'seed', which belongs to the whole run",
        ),
        ({"stages": ({"model": {"dropout": 0.5}},)}, "sets 'model.dropout', which belongs to"),
        (
            {"stages": ({"optimizer": {"frozen": "x"}},)},
            "frozen is 'x' but must be a tuple",
        ),
        ({"learning_rate": 0.1}, "Did you mean 'optimizer.learning_rate'"),
        ({"seed": 2**31}, "from 0 to 2147483647"),
        ({"optimizer__learning_rate": float("inf")}, "is inf but must be a number from 1e-12 to"),
        ({"model__attention": ConfigDict({"name": 3})}, "attention.name is 3 but must be a string"),
        ({"model__attention__placement": 3}, "is now config.model.attention.blocks"),
        ({"input__dataset": "a\x00"}, r"config.input.dataset is 'a\x00' but must be one line"),
        ({"init_from": "a\nb"}, "but must be one line of at most 1000 characters"),
        ({"model__backbone": "x" * 1001}, "but must be one line of at most 1000 characters"),
        ({"seed": 10**5000}, "config.seed is a number of thousands of digits but must be"),
        ({"optimizer__frozen": ("",)}, "each item a string that is a regular expression and not"),
        ({"optimizer__frozen": ("a{99999999999}",)}, "regular expression and not empty"),
        ({"optimizer__lr_multipliers": (("a", -1.0),)}, "a number from 0 to 1e+06)"),
        ({"schedule__warmup_epochs": float("nan")}, "is nan but must be a number from 0 to"),
        ({"stages": ({"optimizer": {"learning_rate": 10**400}},)}, "from 1e-12 to 1e+06"),
        ({"num_epochs": 10**20}, "but must be a whole number from 1 to 1000000"),
        ({"model": None}, "config.model is None but must hold the keys backbone"),
        ({"model__attention__x": {1, 2}}, "{1, 2} but must be made of strings, finite numbers"),
        ({"model__attention__x": float("inf")}, "inf but must be made of strings, finite"),
        ({"stages": ({1: 2},)}, "In config.stages[0]: There is no config key '1'."),
        ({"input__bad_images": "ignore"}, "must be 'stop' or 'skip'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, sentence):
    with pytest.raises(UsageError) as refusal:
        check(changed(**changes))
    assert sentence in str(refusal.value)


def test_batches_are_shared_evenly():
    check_batches(changed(batch_size=64, eval_batch_size=8), 8)
    with pytest.raises(UsageError, match=r"batch_size is 60, which 8 devices .*=56 or 64"):
        check_batches(changed(batch_size=60), 8)
    with pytest.raises(UsageError, match=r"eval_batch_size is 3, .*eval_batch_size=8\."):
        check_batches(changed(eval_batch_size=3), 8)


@pytest.mark.parametrize("name", ["digits.py:bcnn59", "fine_grained.py:cub_vgg16_bcnn"])
def test_a_config_comes_back_from_json(name):
    config = load(f"{ROOT}/configs/{name}")
    again = from_json(json.loads(json.dumps(as_json(config))))
    assert as_json(again) == as_json(config)
    assert len(stage_configs(again)) == len(stage_configs(config)) > 1


def test_the_parts_of_a_device_are_equal():
    check_batches(changed(batch_size=64, eval_batch_size=8, accumulation=4), 8)
    with pytest.raises(
        UsageError, match=r"8 devices .* in 4 parts each \(config\.accumulation\): .*=32 or 64\."
    ):
        check_batches(changed(batch_size=56, accumulation=4), 8)


def test_examples_are_mixed_in_pairs():
    config = changed(batch_size=24, accumulation=3, cutmix=1.0)
    check_batches(config, 4, ["batch_size"])
    with pytest.raises(
        UsageError, match=r"4 devices .* in 5 parts each .* in pairs, which mixup .*=40 or 80\."
    ):
        check_batches(changed(batch_size=60, accumulation=5, mixup=0.2), 4)


def test_flatten():
    nested = ConfigDict({"a": {"b": 1, "c": {"d": (2,)}}, "e": None})
    assert flatten(nested) == {"a.b": 1, "a.c.d": (2,), "e": None}


def test_a_config_that_lacks_a_key_is_refused():
    config = get_config()
    del config.optimizer.momentum
    with pytest.raises(UsageError, match=r"no key 'optimizer\.momentum'; start"):
        check(config)


def test_stages_lay_their_changes_over_the_config():
    stages = ({"num_epochs": 3, "optimizer": {"frozen": ("a",)}}, {"batch_size": 8})
    config = changed(stages=stages)
    first, second = stage_configs(config)
    assert (first.num_epochs, first.optimizer.frozen, first.batch_size) == (3, ("a",), 256)
    assert (second.num_epochs, second.optimizer.frozen, second.batch_size) == (100, (), 8)
    assert first.stages == second.stages == () and config.stages == stages
    assert first.seed == second.seed == config.seed
    with pytest.raises(UsageError, match=r"batch_size is 8, which 16 devices .*=16\."):
        check_batches(config, 16)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_a_default_that_fits_and_a_meaning(key):
    config = get_config()
    for name in key.split("."):
        config = config[name]
    assert config == KEYS[key].default
    assert KEYS[key].meaning and not KEYS[key].meaning.endswith(".")
