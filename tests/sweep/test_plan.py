"""Grids become runs, and what cannot be meant is refused before one is started."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from sop.config.validation import as_json
from sop.errors import UsageError
from sop.sweep.__main__ import main as sweep
from sop.sweep.grid import Grid, name_of, parse_grid
from sop.sweep.plan import Sweep, parse_config, refuse_unfit
from sop.sweep.tuning import at_an_end, choose, make_tuning, phases
from sop.training.durable import write_json

DIGITS = "configs/digits.py"


def plan(*grids, fixed=(), seeds=1, workdir="runs"):
    return Sweep(DIGITS, fixed, tuple(map(parse_grid, grids)), seeds, Path(workdir))


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    assert parse_grid("a=1, 2").values == ("1", "2")
    assert parse_grid("config.a=crop(8, 1) | flip,{'b': (1, 2)}") == Grid(
        "a", ("crop(8, 1) | flip", "{'b': (1, 2)}")
    )
    assert parse_grid("a=','").values == ("','",)


@pytest.mark.parametrize("text", ["batch_size", "batch_size=", "=1", "batch_size=1,,2"])
def test_an_empty_grid_is_refused(text):
    with pytest.raises(UsageError, match=r"write --grid='key=v1,v2'"):
        parse_grid(text)


def test_names_are_short_and_fit_for_folders():
    settings = {"model.attention.name": "gsop", "input.train_split": "train[:50%]", "a.b": "1"}
    assert name_of(settings) == "attention=gsop,train_split=train_50,b=1"
    assert name_of({"a.b": "1", "c.b": "2"}) == "a.b=1,c.b=2"
    assert name_of({"model.pool": "{'name': 'gfgp', 'lam': 2.0}"}) == "pool=gfgp,lam=2.0"


def test_a_run_for_each_combination_and_seed():
    model = "model.representation={'name': 'mpncov', 'num_iters': 1},{'name': 'gavp'}"
    runs = plan(model, "model.attention.name=none,cgd", seeds=2).runs()
    assert [run.workdir.name for run in runs][:3] == [
        "representation=mpncov,num_iters=1,attention=none,seed=0",
        "representation=mpncov,num_iters=1,attention=none,seed=1",
        "representation=mpncov,num_iters=1,attention=cgd,seed=0",
    ]
    assert len({run.workdir for run in runs}) == 8
    assert runs[0].config.model.representation.num_iters == 1 and runs[1].config.seed == 1
    assert runs[-1].config.model.representation.name == "gavp"


def test_the_command_of_a_run_is_one_of_main():
    import main
    from sop.config.command_line import parse
    from sop.training.workdir import with_whole_model

    grid = "input.train_transforms=pad_crop(8, 1) | flip"
    [run] = plan(grid, fixed=("--config.num_epochs=3",)).runs()
    _, script, *flags = shlex.split(str(run))
    options, config = parse(main.make_parser(), flags)
    assert Path(script).resolve() == Path(main.__file__) and options.workdir == str(run.workdir)
    assert as_json(with_whole_model(config)) == as_json(run.config)
    assert run.config.num_epochs == 3


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (["batchsize=1,2"], "no config key 'batchsize'"),
        (["batch_size=1,many"], "config.batch_size is 'many'"),
        (["model.attention.name=gsopp"], "no attention 'gsopp'"),
        (["input.train_transforms=flop"], "flop"),
        (["batch_size=32,64,32"], "Two runs have one name, 'batch_size=32'"),
        (["optimizer.learning_rate=0.1,1e-1"], "are the same"),
        (["batch_size=32", "batch_size=64"], "two grids of 'batch_size'"),
        (["seed=1,2"], "--seeds"),
        (["init_from=" + "x" * 300], "has 310 characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(grids, message):
    with pytest.raises(UsageError, match=message):
        plan(*grids).runs()


def test_a_key_with_a_grid_has_no_other_value():
    with pytest.raises(UsageError, match="leave one out"):
        plan("batch_size=1,2", fixed=("--config.batch_size=3",)).runs()


def test_folders_of_other_configs_and_missing_splits_are_refused(tmp_path):
    runs = plan("batch_size=36,72", workdir=tmp_path).runs()
    refuse_unfit(runs)
    (runs[1].workdir / "checkpoints" / "7").mkdir(parents=True)
    write_json(runs[1].workdir / "config.json", as_json(runs[1].config))
    refuse_unfit(runs)
    write_json(runs[1].workdir / "config.json", as_json(runs[0].config))
    with pytest.raises(UsageError, match=r"of another config \(batch_size was 36, is 72\)"):
        refuse_unfit(runs)
    with pytest.raises(UsageError, match="no split 'valid'"):
        refuse_unfit(plan(fixed=("--config.input.eval_split=valid",), workdir=tmp_path).runs())
    with pytest.raises(UsageError, match=f"no checkpoint in {tmp_path}/none"):
        refuse_unfit(plan(f"init_from={tmp_path}/none", workdir=tmp_path / "new").runs())


def test_nothing_is_written_where_one_config_is_wrong(tmp_path):
    with pytest.raises(UsageError, match="mpncof"):
        sweep(
            [
                f"--config={DIGITS}",
                "--grid=model.representation.name=gavp,mpncof",
                f"--workdir={tmp_path / 'runs'}",
            ]
        )
    assert not list(tmp_path.iterdir())


def test_tuning_is_printed_first_and_opens_no_test_split(tmp_path, capsys):
    sweep(
        [
            f"--config={DIGITS}",
            "--grid=model.representation.name=gavp,gem",
            "--tune=optimizer.learning_rate=0.1,0.2,0.4",
            "--seeds=5",
            f"--workdir={tmp_path}",
            "--print",
        ]
    )
    printed = capsys.readouterr()
    commands = [shlex.split(line) for line in printed.out.splitlines()]
    assert len(commands) == 6 and not printed.err
    for _, _, *flags in commands:
        config = parse_config([each for each in flags if each.startswith("--config")])
        splits = config.input.train_split, config.input.eval_split
        assert splits == ("train[:80%]", "train[80%:]") and config.seed == 0
    assert not list(tmp_path.iterdir())


def test_a_tuning_on_what_is_tested_is_refused():
    grid = Grid("optimizer.learning_rate", ("0.1", "0.2"))
    tuning = make_tuning(plan(), [grid], "train[:1000],train[1000:]")
    assert (tuning.train, tuning.validation) == ("train[:1000]", "train[1000:]")
    with pytest.raises(UsageError, match="choose on 'test'"):
        make_tuning(plan(), [grid], "train,test[:50%]")
    folder = plan(fixed=("--config.input.eval_split=VOC2007/test",))
    make_tuning(folder, [grid], "VOC2007/train,VOC2007/val")
    with pytest.raises(UsageError, match="choose on 'VOC2007/test'"):
        make_tuning(folder, [grid], "VOC2007/train,VOC2012/val + VOC2007/test")
    with pytest.raises(UsageError, match="choose on 'train'"):
        make_tuning(plan(fixed=("--config.input.eval_split=train[90%:]",)), [grid], None)
    with pytest.raises(UsageError, match="two splits"):
        make_tuning(plan(), [grid], "train")
    with pytest.raises(UsageError, match="name two parts"):
        make_tuning(plan(fixed=("--config.input.train_split=train[:100]",)), [grid], None)


def test_each_method_takes_the_value_that_was_best_on_validation(capsys):
    grid = Grid("optimizer.learning_rate", ("0.1", "0.2", "0.4"))
    sweep = plan("model.representation.name=gavp,gem,max")
    tuning = make_tuning(sweep, [grid], None)
    runs = tuning.sweep(sweep).runs()
    found = dict(
        zip(
            (run.workdir for run in runs),
            [(0.5, 2.0), (0.7, 2.0), (0.7, 1.0), (0.9, 1.0), None, (0.8, 0.1), None, None, None],
            strict=True,
        )
    )

    def result(run):
        scores = found[run.workdir]
        return scores and dict(zip(("top1", "loss"), scores, strict=True))

    chosen = choose(runs, tuning, result)
    rates = {name: settings[grid.key] for name, settings in chosen.items()}
    assert rates == {"representation=gavp": "0.4", "representation=gem": "0.1"}
    assert at_an_end(chosen, [grid]) == list(rates)
    trials, final = phases(sweep, tuning, result)
    assert [run.workdir for run in trials] == [run.workdir for run in runs]
    assert all(run.workdir.parent.name == "tuning" for run in trials)
    assert [run.config.optimizer.learning_rate for run in final] == [0.4, 0.1]
    assert final[0].config.input.eval_split == "test"
    assert "no optimizer.learning_rate worked" in capsys.readouterr().err


def test_detectors_are_tuned_by_average_precision():
    grid = Grid("optimizer.learning_rate", ("0.01", "0.02", "0.04"))
    sweep = Sweep("configs/digit_scenes.py", (), (), 1, Path("runs"))
    tuning = make_tuning(sweep, [grid], None)
    runs = tuning.sweep(sweep).runs()
    scores = iter([{"AP": 0.2, "AP50": 0.9}, {"AP": 0.3, "AP50": 0.5}, {"AP": 0.3, "AP50": 0.6}])
    assert choose(runs, tuning, lambda run: next(scores)) == {"": {grid.key: "0.02"}}


def test_two_keys_are_tuned_together():
    rates = Grid("optimizer.learning_rate", ("0.1", "0.2", "0.4"))
    factors = Grid(
        "optimizer.lr_multipliers", ("(('^classifier/', 1.0),)", "(('^classifier/', 30.0),)")
    )
    sweep = plan("model.representation.name=gavp,gem")
    tuning = make_tuning(sweep, [rates, factors], None)

    def result(run):
        rate, ((_, factor),) = (
            run.config.optimizer.learning_rate,
            run.config.optimizer.lr_multipliers,
        )
        best = (0.2, 30.0) if run.method.startswith("representation=gavp") else (0.4, 1.0)
        return {"top1": 1.0 if (rate, factor) == best else 0.5, "loss": 1.0}

    trials, final = phases(sweep, tuning, result)
    assert len(trials) == 2 * 3 * 2
    found = [
        (run.config.optimizer.learning_rate, run.config.optimizer.lr_multipliers) for run in final
    ]
    assert found == [(0.2, (("^classifier/", 30.0),)), (0.4, (("^classifier/", 1.0),))]
    chosen = choose(trials, tuning, result)
    assert at_an_end(chosen, tuning.grids) == ["representation=gem"]


def test_methods_that_differ_in_what_the_tuning_fixes_share_it():
    grid = Grid("optimizer.learning_rate", ("0.1", "0.2", "0.4"))
    sizes = "input.train_split=train[:100],train[:1000]"
    sweep = plan("model.representation.name=gavp,gem", sizes, fixed=("--config.num_epochs=9",))
    tuning = dataclasses.replace(
        make_tuning(sweep, [grid], "train[:300],train[1000:]"), changes={"num_epochs": "3"}
    )

    def result(run):
        rate, gem = run.config.optimizer.learning_rate, "gem" in run.method
        return {"top1": 1.0 if rate == (0.2 if gem else 0.4) else 0.5, "loss": 1.0}

    trials, final = phases(sweep, tuning, result)
    assert len(trials) == 2 * 3
    assert {run.config.input.train_split for run in trials} == {"train[:300]"}
    assert {run.config.num_epochs for run in trials} == {3}
    found = [
        (run.config.input.train_split, run.config.num_epochs, run.config.optimizer.learning_rate)
        for run in final
    ]
    assert found == [(f"train[:{n}]", 9, rate) for rate in (0.4, 0.2) for n in (100, 1000)]
