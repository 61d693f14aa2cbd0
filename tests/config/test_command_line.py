"""What a command line means, and what a wrong one answers."""

import pytest

import main
from sop.command import Parser
from sop.config.command_line import add_config, load, parse
from sop.errors import UsageError
from tests.launch import ROOT, run

DIGITS = f"{ROOT}/configs/digits.py"


def parsed(*arguments):
    parser = Parser(prog="test")
    add_config(parser, default=DIGITS)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--mode", choices=["train", "eval"])
    return parse(parser, arguments)


def config_of(*arguments):
    return parsed("--workdir=x", *arguments)[1]


def test_values_have_the_type_of_their_key():
    config = config_of(
        "--config.batch_size=32",
        "--config.optimizer.weight_decay=0",
        "--config.optimizer.clip_norm",
        "1e-1",
        "--config.optimizer.nesterov",
        "--config.input.cache=false",
        "--config.schedule.boundaries=3,4",
        "--config.optimizer.frozen=^features/",
        "--config.input.data_dir=None",
        "--config.init_from=",
        "--config.input.dataset=123",
    )
    assert (config.batch_size, config.optimizer.weight_decay) == (32, 0)
    assert (config.optimizer.clip_norm, config.optimizer.nesterov) == (0.1, True)
    assert config.input.cache is False and config.input.data_dir is None
    assert config.schedule.boundaries == (3, 4) and config.optimizer.frozen == ("^features/",)
    assert config.init_from == "" and config.input.dataset == "123"
    assert config_of("--config.schedule.boundaries=5").schedule.boundaries == (5,)


def test_options_of_modules_are_literals_or_texts():
    config = config_of(
        "--config.model.attention=gsop",
        "--config.model.attention.dim=64",
        "--config.model.attention.manner=position",
        "--config.model.last_stride=1",
    )
    assert config.model.attention.to_dict() == {"name": "gsop", "dim": 64, "manner": "position"}
    assert config.model.last_stride == 1


def test_a_dict_sets_keys_of_its_group():
    config = config_of(
        "--config.model.pool={'name': 'max_entropy', 'lam': 2}", "--config.schedule={'factor': 0.5}"
    )
    assert config.model.pool.to_dict() == {"name": "max_entropy", "lam": 2}
    assert config.schedule.factor == 0.5 and config.schedule.name == "cosine"


def test_flags_and_experiments():
    options, config = parsed("--workdir", "x y", "--mode=eval", f"--config={DIGITS}:gavp04")
    assert (options.workdir, options.mode, config.model.num_classes) == ("x y", "eval", 5)
    assert load(DIGITS) == load(f"{DIGITS}:mpncov")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.typo=1"], "There is no config key 'typo'."),
        (["--config.modle.backbone=a"], "Did you mean 'model.backbone'?"),
        (["--config.model.bakbone=a"], "Did you mean 'model.backbone'?"),
        (["--config.model.attention.where=conv"], "is now config.model.attention.after."),
        (["--config.seed.x=1"], "There is no config key 'seed.x'."),
        (["--config.input.cashe"], "Did you mean 'input.cache'?"),
        (["--config.batch_size=abc"], "config.batch_size is 'abc' but must be a whole number"),
        (["--config.seed=9_9e9999"], "config.seed is 9_9e9999 but must be a whole number from 0"),
        (["--config.optimizer.learning_rate=1e999"], "learning_rate is 1e999 but must be a number"),
        (["--config.seed=" + "9" * 5000], f"config.seed is '{'9' * 59}…"),
        (["--config.model=None"], "config.model is None but must hold the keys"),
        (["--config.model={'backbon': 'x'}"], "Did you mean 'model.backbone'?"),
        (["--config.model.last_stride=b'x'"], "is b'x' but must be made of strings, finite"),
        (["--config.model.last_stride={1: 2, 'a': 3}"], "dicts whose keys are strings."),
        (["--config.stages=3"], "config.stages is 3 but must be a tuple"),
        (["--config.optimizer=3"], "config.optimizer is 3 but must hold the keys learning_rate"),
        (["--confg.seed=1"], "There is no flag '--confg.seed=1'."),
        (["--wrkdir=1"], "There is no flag '--wrkdir=1'. Did you mean '--workdir'?"),
        (["eval"], "There is no flag 'eval'."),
        (["--mode=evl"], "invalid choice: 'evl' (choose from"),
        ([f"--config={ROOT}/configs/digts.py"], "configs/digits.py'?"),
        ([f"--config={DIGITS}:gavp05"], "no experiment 'gavp05'. Did you mean 'gavp04'?"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, sentence):
    with pytest.raises(UsageError) as refusal:
        config_of(*arguments)
    assert sentence in str(refusal.value)


def test_a_missing_flag_is_named():
    with pytest.raises(UsageError, match="--workdir=DIR"):
        main.main([])


def test_a_file_with_experiments_lists_them(tmp_path):
    with pytest.raises(UsageError) as refusal:
        main.main([f"--config={ROOT}/configs/imagenet.py"])
    first, *rows = str(refusal.value).splitlines()
    assert first.startswith("Name an experiment behind the config file")
    assert any(row.split()[0] == "resnet50_gsop2" and "21.19" in row for row in rows)
    (tmp_path / "one.py").write_text("def get_config(): pass")
    with pytest.raises(UsageError, match="has no experiments"):
        load(f"{tmp_path}/one.py:name")
    (tmp_path / "none.py").write_text("config = 3")
    with pytest.raises(UsageError, match=r"defines no function get_config\(\)"):
        load(f"{tmp_path}/none.py")


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\ndef get_config():\n    return digits.get_config().no.key\n"
    )
    code, output = run("main.py", "--workdir=x", f"--config={tmp_path}/mine.py", timeout=60)
    assert code == 1 and "Traceback" in output and "mine.py" in output


def test_a_refusal_needs_no_jax_and_help_lists_all_keys():
    program = (
        "import sys, main\n"
        "try:\n    main.main(sys.argv[1:])\n"
        "except (SystemExit, ValueError) as error:\n    print(repr(error))\n"
        "print('jax' in sys.modules)"
    )
    code, output = run("-c", program, "--workdir=x", "--config.bach_size=3", timeout=60)
    assert code == 0 and "Did you mean 'batch_size'?" in output and output.endswith("False\n")
    code, output = run("-c", program, "--help", timeout=60)
    assert "optimizer.clip_norm" in output and output.endswith("False\n")


def test_the_first_screen_of_the_help_names_the_modes():
    screen = "\n".join(main.make_parser().format_help().splitlines()[:24])
    for mode in main.MODES:
        assert f"\n  --mode={mode} " in screen


def test_an_override_with_a_space_is_no_value_of_the_flag_before():
    parser = main.make_parser()
    arguments = ["--images", "a.png", "b.png", "--config.input.eval_transforms=flip | flip"]
    options, config = parse(parser, arguments, lambda options: load(DIGITS))
    assert options.images == ["a.png", "b.png"] and config.input.eval_transforms == "flip | flip"
