"""The study's parts can be planned, its rows are found again, its page says what they say."""

import re
from pathlib import Path

import pytest

from results import page, parts, study
from results.claims import CLAIMS, Claim, find, verdict
from sop.errors import UsageError
from sop.results.record import FIELDS, fingerprint, read_csv
from sop.sweep.progress import record_failure
from sop.sweep.tuning import phases
from sop.training.loop import DIVERGED

GAINS = {"mpncov": 0.2, "eigh": 0.201, "none": -0.1}


def row_of(part, run):
    """A row as if the run had been made: seeds matter little, and covariances help."""
    gain = next((value for word, value in reversed(GAINS.items()) if word in run.method), 0.0)
    size = re.fullmatch(r"train\[:(\d+)\]", run.config.input.train_split)
    fields = {
        "method": run.method,
        "seed": run.seed,
        "top1": 0.5 + gain + 0.001 * run.seed,
        "examples": int(size[1]) if size else None,
        "loss": abs(run.config.optimizer.learning_rate - 0.2),
        "learning_rate": run.config.optimizer.learning_rate,
        "config": fingerprint(run.config),
        "parameters": 1000 + len(run.method),
        "multiply_adds": 1000,
        "machine": "none",
        "seconds": 1.0,
    }
    purpose = "tuning" if run.workdir.parent.name == "tuning" else "test"
    return {"part": part, "purpose": purpose, **dict.fromkeys(FIELDS), **fields}


def rows_of(part):
    """Of all runs of a part."""
    made = {}

    def result(run):
        return made.get((run.method, run.seed))

    sweeps, tuning = parts.plan(part, Path("runs"))
    for sweep in sweeps:
        for runs in phases(sweep, tuning, result):
            made |= {(run.method, run.seed): row_of(part, run) for run in runs}
    return list(made.values())


@pytest.fixture(scope="module")
def rows():
    return rows_of("typefaces_heads")


@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_can_be_planned_and_its_claims_told(part):
    sweeps, tuning = planned = parts.plan(part, Path("runs"))
    _, kind = part.rsplit("_", 1)
    methods = planned.methods()
    for claim in CLAIMS:
        if claim.kind == kind:
            assert {find(claim.better, methods), find(claim.worse, methods)} <= set(methods)
    assert planned.size() == len(rows_of(part))
    first, *others = [next(phases(sweep, tuning, lambda run: None)) for sweep in sweeps]
    tried = len(planned.rates()) * (1 if kind in ("attention", "pooling") else 2)
    assert len(first) == len(methods) / len(sweeps) * tried
    assert all("test" not in run.config.input.eval_split for run in first)
    for trials in others:
        assert [fingerprint(run.config) for run in trials] == [
            fingerprint(run.config) for run in first
        ]


def test_the_page_says_what_the_rows_say(rows, tmp_path):
    assert len(rows) == 9 * (6 * 2 + 5)
    speed = {"part": "typefaces_heads", "method": "representation=gavp"}
    speed |= {"images_per_second": 1234.5, "memory": 10**6}
    text = page.page(rows, [speed], tmp_path)
    assert (tmp_path / "typefaces_heads.png").exists()
    assert "| mpncov, num_iters=5 | 5 | 70.20 ± 0.20 | +20.00 ± 0.00 | 0.2 |" in text
    assert "| covariance beats average pooling | typefaces | +20.00 ± 0.00 | seen |" in text
    assert "| iSQRT-COV beats B-CNN | typefaces | +20.00 ± 0.00 | seen |" in text
    assert "exact root | typefaces | -0.10 ± 0.00 | seen |" in text
    assert (
        "153 runs, 108 of them for the rates, 0.006, 0.02, 0.06, 0.2, 0.6, 1.8; 0:02:33" in text
        and "## mnist" not in text
    )
    assert "| 0.00 M | 1,234 | 1 MB |" in text
    assert "missing yet" not in text
    few = page.page([row for row in rows if row["seed"] == 0], [], tmp_path)
    assert "| covariance beats average pooling | typefaces | +20.00 | not decidable" in few
    assert "36 are missing yet" in few
    with pytest.raises(UsageError, match="holds no run yet"):
        page.page([row for row in rows if row["purpose"] == "tuning"], [], tmp_path)


def test_a_run_that_became_nan_is_told_and_not_tried_again(tmp_path, monkeypatch, capsys):
    """And what was trained at the rate that was best before gives place to what is best now."""
    part = "typefaces_pooling"
    [sweep], tuning = parts.plan(part, tmp_path)
    trials = next(phases(sweep, tuning, lambda run: None))
    first, last = trials[0], trials[-1]
    made = {study.key(row): row for row in rows_of(part) if row["purpose"] == "test"}
    old = next(row for row in made.values() if row["method"].endswith("gfgp"))
    made = {study.key(row): row for row in (old | {"config": "before"}, *made.values())}
    del made[study.key(old)]
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs.csv")
    study.write(
        [*made.values(), *(row_of(part, run) for run in trials if run not in (first, last))]
    )

    def execute(runs, jobs, finished):
        for run in runs:
            started.append(run)
            if run in (first, last):
                run.workdir.mkdir(parents=True, exist_ok=True)
                record_failure(
                    run, 2, f"{DIVERGED} in training step 3." if run == first else "killed"
                )
            else:
                finished(run)
        return True

    started = []
    monkeypatch.setattr(study, "execute", execute)
    monkeypatch.setattr(study, "row_of", row_of)
    command = [part, "--workdir", str(tmp_path)]
    study.main(command)
    assert [run.method for run in started] == [first.method, last.method, old["method"]]
    started.clear()
    study.main(command)
    assert started == [last]  # which may have been killed
    rows = read_csv(tmp_path / "runs.csv")
    assert len(rows) == parts.plan(part, tmp_path).size() - 1
    assert "before" not in {row["config"] for row in rows}
    text = page.page(rows, [], tmp_path)
    assert "1 failed. 1 are missing yet" in text


def test_heads_are_compared_on_as_many_examples(tmp_path):
    rows = rows_of("mnist_5k_sizes")
    assert len(rows) == 3 * (6 * 2 + 4 * 5)
    for row in rows:
        if row["purpose"] == "test":
            row["top1"] += row["examples"] / 100_000
    text = page.page(rows, [], tmp_path)
    assert "mnist_5k_sizes: accuracy of each method against its training examples" in text
    assert (tmp_path / "mnist_5k_sizes.png").exists()
    for size, mean, gained in (("100", "50.30", "70.30"), ("4,000", "54.20", "74.20")):
        assert f"| gavp | 5 | {mean} ± 0.20 |  | 0.2 | {size} |" in text
        assert (
            f"| mpncov, num_iters=5 | 5 | {gained} ± 0.20 | +20.00 ± 0.00 | 0.2 | {size} |" in text
        )


def test_ways_of_fine_tuning_have_names_and_no_figure(tmp_path):
    rows = rows_of("digits_finetuning")
    for row in rows:
        row["parameters"] = 1000
        row["top1"] += 0.1 * ("digits_gavp04" in row["method"])
    text = page.page(rows, [], tmp_path)
    assert "| fine-tuned, two stages | 5 | 60.20 ± 0.20 | +10.00 ± 0.00 |" in text
    assert "the same from scratch | digits | +10.00 ± 0.00 | seen |" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gains", "as_good", "at_an_end", "said"),
    [
        ((0.02, 0.021), False, "", "seen"),
        ((0.02, 0.021), False, "a", "seen"),
        ((0.02, 0.021), False, "b", "not decidable here"),
        ((-0.02, -0.021), False, "", "not seen"),
        ((-0.02, -0.021), False, "a", "not decidable here"),
        ((-0.02, 0.06), False, "", "not decidable here"),
        ((-0.0002, 0.0001), False, "", "not seen"),
        ((-0.0002, 0.0001), True, "", "seen"),
        ((-0.02, -0.021), True, "", "not seen"),
        ((0.02,), False, "", "not decidable here"),
    ],
)
def test_verdicts(gains, as_good, at_an_end, said):
    accuracy = {"a": {n: 0.5 + gain for n, gain in enumerate(gains)}, "b": {0: 0.5, 1: 0.5}}
    claim = Claim("", "", "a", "b", as_good)
    assert verdict(claim, accuracy, frozenset(at_an_end))[0] == said
    assert verdict(claim._replace(worse="c"), accuracy, frozenset())[1] is None


def test_the_page_is_that_of_the_rows(tmp_path):
    rows, speeds = read_csv(study.RUNS), read_csv(study.SPEED)
    if rows:
        assert len({study.key(row) for row in rows}) == len(rows)
        assert (study.FOLDER / "README.md").read_text() == page.page(rows, speeds, tmp_path)


def test_an_unknown_part_is_refused():
    with pytest.raises(UsageError, match=r"'typefaces_head'\. Did you mean 'typefaces_heads'"):
        study.main(["typefaces_head"])


def test_what_stands_in_the_csv_is_not_run_again(tmp_path, monkeypatch, capsys):
    started = []

    def execute(runs, jobs, finished):
        """Finishes five runs, then is interrupted, as on a machine that goes away."""
        for run in runs[:5]:
            started.append(run.workdir)
            finished(run)
        return len(runs) <= 5

    monkeypatch.setattr(study, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(study, "execute", execute)
    monkeypatch.setattr(study, "row_of", row_of)
    monkeypatch.setattr(study, "refuse_unfit", lambda runs: None)
    monkeypatch.setattr(parts, "SEEDS", 1)
    for _ in range(8):
        study.main(["typefaces_pooling", f"--workdir={tmp_path / 'runs'}"])
    assert len(started) == len(set(started)) == 5 * 6 + 5
    assert "5 runs, 0 missing" in capsys.readouterr().out
    assert len(read_csv(study.RUNS)) == 35
