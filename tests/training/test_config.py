"""A config against its schema, and what a wrong command line answers."""

import pytest
from ml_collections import ConfigDict

from configs import default
from sop.errors import UsageError
from sop.training.config import check, check_batch, flatten
from tests.launch import ROOT, run


def changed(**changes):
    config = default.get_config()
    for key, value in changes.items():
        *above, last = key.split("__")
        holder = config
        for name in above:
            holder = holder[name]
        with holder.ignore_type(), holder.unlocked():
            holder[last] = value
    return config


def test_the_default_passes():
    check(default.get_config(), default.get_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__weight_decay": 0},  # a whole number is a number
        {"schedule__boundaries": [1, 2.5]},  # a list is as good as a tuple
        {"optimizer__clip_norm": 1.0},
        {"input__data_dir": None},
        {"model__attention": ConfigDict({"name": "gsop", "reduction": 128})},
        {"model__representation": None},
        {"model__last_stride": 1},  # an option of the backbone
        {"optimizer__lr_multipliers": (("^head/", 10), (".*bias", 2.0))},
        {"checkpoint__every_steps": 100},
        {"stages": ({"optimizer": {"learning_rate": 1}}, {"num_epochs": 3})},
    ],
)
def test_what_can_be_meant_passes(changes):
    check(changed(**changes), default.get_config())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"typo": 1}, "There is no config key 'typo'"),
        ({"bach_size": 1}, "Did you mean 'batch_size'"),
        ({"optimizer__momentun": 0.5}, "'optimizer.momentun'. Did you mean 'optimizer.momentum'"),
        ({"momentum": 0.5}, "Did you mean 'optimizer.momentum'"),
        ({"model__atention": ConfigDict({"name": "none"})}, "Did you mean 'model.attention'"),
        ({"batch_size": 1.5}, "config.batch_size is 1.5 but must be a whole number"),
        ({"batch_size": True}, "config.batch_size is True but must be a whole number"),
        ({"optimizer__nesterov": 1}, "config.optimizer.nesterov is 1 but must be True or False"),
        ({"optimizer__momentum": "0.9"}, "config.optimizer.momentum is '0.9' but must be a number"),
        ({"optimizer__clip_norm": "x"}, "must be a number or None"),
        ({"schedule__boundaries": 3}, "config.schedule.boundaries is 3 but must be a tuple"),
        ({"seed": None}, "config.seed is None but must be a whole number"),
        ({"optimizer": 3}, "config.optimizer is 3 but must hold the keys"),
        ({"dtype": "float16"}, "must be one of 'float32', 'bfloat16'"),
        ({"schedule__name": "steps"}, "must be one of 'step', 'cosine', 'log', 'constant'"),
        ({"optimizer__learning_rate": 0.0}, "must be above 0"),
        ({"schedule__boundaries": (30, 30)}, "must be epochs above 0 in ascending order"),
        ({"schedule__boundaries": (30, 10)}, "must be epochs above 0 in ascending order"),
        ({"num_epochs": 0}, "config.num_epochs is 0 but must be at least 1"),
        ({"batch_size": 0}, "config.batch_size is 0 but must be at least 1"),
        ({"label_smoothing": 1.0}, "must be at least 0 and below 1"),
        ({"optimizer__clip_norm": 0.0}, "must be above 0"),
        ({"optimizer__frozen": ("(",)}, "must be a tuple of regular expressions"),
        ({"optimizer__lr_multipliers": (("a", "b"),)}, "pairs (regular expression, number)"),
        ({"stages": (3,)}, "config.stages is (3,) but must be a tuple of dicts"),
        ({"stages": ({"optimizer": {"momentun": 0}},)}, "In config.stages[0]: There is no config"),
        ({"stages": ({}, {"seed": "x"})}, "In config.stages[1]: config.seed is 'x' but must"),
        ({"input__bad_images": "ignore"}, "must be one of 'stop', 'skip'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, sentence):
    with pytest.raises(UsageError) as refusal:
        check(changed(**changes), default.get_config())
    assert sentence in str(refusal.value)


def test_batches_are_shared_evenly():
    check_batch(changed(batch_size=64, eval_batch_size=8), 8)
    with pytest.raises(UsageError, match=r"batch_size is 60, which 8 devices .*=56 or 64"):
        check_batch(changed(batch_size=60), 8)
    with pytest.raises(UsageError, match=r"eval_batch_size is 3, .*eval_batch_size=8\."):
        check_batch(changed(eval_batch_size=3), 8)


def test_flatten():
    nested = ConfigDict({"a": {"b": 1, "c": {"d": (2,)}}, "e": None})
    assert flatten(nested) == {"a.b": 1, "a.c.d": (2,), "e": None}


PROGRAM = """
import functools
from absl import app, flags
from ml_collections import config_flags
from configs import default
from sop.training import config

CONFIG = config_flags.DEFINE_config_file("config", lock_config=False, accept_new_attributes=True)
flags.DEFINE_string("workdir", None, "", required=True)

def main(argv):
    print(CONFIG.value.model.attention.to_dict(), CONFIG.value.schedule.boundaries)

parse = functools.partial(
    config.parse_flags, default=default.get_config(), file="configs/default.py")
app.run(main, flags_parser=parse)
"""
CONFIG = f"--config={ROOT}/configs/default.py"


def parse(*arguments):
    return run("-c", PROGRAM, "--workdir=x", *arguments, timeout=60)


def test_overrides_of_schema_keys_and_of_module_options():
    code, output = parse(
        CONFIG,
        "--config.model.attention.name=gsop",
        "--config.model.attention.reduction=64",
        "--config.schedule.boundaries=3,4",
    )
    assert (code, output) == (0, "{'name': 'gsop', 'reduction': 64} (3, 4)\n")


def test_the_config_file_may_be_left_out():
    code, output = parse("--config.schedule.boundaries=(5,)")
    assert (code, output) == (0, "{'name': 'none'} (5,)\n")


def test_a_missing_flag_is_named():
    code, output = run("-c", PROGRAM, timeout=60)
    assert (code, output) == (2, "Flag --workdir is missing: give --workdir=VALUE.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CONFIG, "--config.typo=1"], "There is no config key 'typo'."),
        ([CONFIG, "--config.modle.backbone=a"], "Did you mean 'model.backbone'?"),
        ([CONFIG, "--config.seed.x=1"], "There is no config key 'seed.x'."),
        ([CONFIG, "--noconfig.input.cashe"], "Did you mean 'input.cache'?"),
        ([CONFIG, "--config.batch_size=abc"], "--config.batch_size is 'abc' but must be a whole"),
        ([CONFIG, "--confg.seed=1"], "Unknown command line flag 'confg.seed'"),
        ([CONFIG, "eval"], "'eval' is not a flag: write --NAME=VALUE."),
        (["--config.seed=1", CONFIG], "Found --config.seed=1 in argv before"),
        ([f"--config={ROOT}/configs/defualt.py"], "configs/default.py?"),
        (["--config.modle.backbone=a"], "Did you mean 'model.backbone'?"),
        (["--workdir"], "Missing value for flag --workdir"),
    ],
)
def test_a_wrong_command_line_ends_with_one_sentence(arguments, sentence):
    code, output = parse(*arguments)
    assert code == 2
    assert sentence in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("config.optimzer.momentum = 0.5", "line 4, 'config.optimzer.momentum = 0.5': 'optimzer'"),
        ("config.seed = 'abc'", """line 4, "config.seed = 'abc'": Could not override"""),
    ],
)
def test_a_config_file_that_misuses_its_config_is_named_with_the_line(tmp_path, line, sentence):
    (tmp_path / "mine.py").write_text(
        "from configs import default\ndef get_config():\n    config = default.get_config()\n"
        f"    {line}\n    return config\n"
    )
    code, output = parse(f"--config={tmp_path}/mine.py")
    assert code == 2
    assert sentence in output
    assert len(output.splitlines()) == 1


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1 + 'a'\n")
    code, output = parse(f"--config={tmp_path}/mine.py")
    assert code == 1
    assert "Traceback" in output
    assert "unsupported operand" in output
