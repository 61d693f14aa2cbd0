"""From work folders to means, intervals, differences, tables and figures."""

import csv
import doctest
import json
import re

import cv2
import pytest

import sop.results.statistics
from configs import digit_scenes, digits
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.results import speed
from sop.results.__main__ import main
from sop.results.figures import draw_sizes
from sop.results.record import FIELDS, fingerprint, read_csv, read_folder, write_csv
from sop.results.statistics import Estimate, by_seed, difference, estimate
from sop.results.table import as_markdown, summarize
from sop.training.durable import write_json
from sop.training.history import HistoryFile
from sop.training.workdir import with_whole_model


def make_run(folder, method, seed, top1, representation="gavp", **changes):
    """A work folder as a run on the digits leaves it, but for the checkpoints."""
    config = digits.get_config()
    config.model.representation.name = representation
    scores = {"loss": 1.0, "top1": top1, "top5": 1.0}
    return write_run(folder / f"{method},seed={seed}", config, seed, scores, changes)


def make_detector(folder, kind, seed, ap, ap50, mask_ap=None):
    masks = {} if mask_ap is None else {"mask_AP": mask_ap}
    scores = {"AP": ap, "AP50": ap50, **masks}
    return write_run(folder / f"{kind},seed={seed}", digit_scenes.get_config(kind), seed, scores)


def write_run(path, config, seed, scores, changes=()):
    config.seed = seed
    config = with_whole_model(config)
    config.update_from_flattened_dict(dict(changes))
    path.mkdir(parents=True)
    write_json(path / "config.json", as_json(config))
    scores = {"step": 9, "epoch": 30.0, **scores, "count": 360}
    data = {key: config.input[key] for key in ("dataset", "eval_split", "eval_transforms")}
    write_json(path / "results.json", {**scores, **data, "parameters": 1000})
    HistoryFile(path).begin([{"split": "eval", **scores}])
    return path


@pytest.fixture
def sweep(tmp_path):
    """Two methods with three seeds; what a seed adds is larger than what they differ in."""
    for seed, luck in enumerate((0.0, 0.1, 0.2)):
        make_run(tmp_path / "runs", "head=gavp", seed, 0.5 + luck)
        make_run(tmp_path / "runs", "head=gem", seed, 0.54 + luck + 0.01 * seed, "gem")
    return tmp_path / "runs"


def test_intervals_are_students():
    assert doctest.testmod(sop.results.statistics, optionflags=doctest.ELLIPSIS).failed == 0
    known = estimate([4.0, 6.0])
    assert known.mean == 5 and known.half == pytest.approx(12.7062047)  # t(0.975, 1) · √2 / √2
    assert estimate([4.0]) == Estimate(4.0, None, 1) and estimate([4.0]).sign == 0
    assert [estimate(each).sign for each in ([1, 2], [1, 1.1], [-1, -1.01])] == [0, 1, -1]


def test_differences_are_paired_by_seed():
    found = difference({0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 1: 0.6, 7: 0.0})
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0, abs=1e-9)
    assert difference({0: 1.0}, {1: 1.0}) is None
    with pytest.raises(UsageError, match="two runs of 'a' with seed 3"):
        by_seed([(3, 0.1), (3, 0.2)], "a")


def test_a_table_of_a_sweep(sweep, capsys):
    main([str(sweep), "--baseline=head=gavp"])
    said = capsys.readouterr().out
    assert "60.00 ± 24.84" in said and "+5.00 ± 2.48" in said
    [base, other] = json.loads((sweep / "results" / "table.json").read_text())
    assert base["difference"] is None and other["difference"] == pytest.approx(0.05)
    assert other["seeds"] == 3 and other["multiply_adds"] > 1e5
    with open(sweep / "results" / "table.csv", encoding="utf-8") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["head=gavp", "head=gem"]
    assert len(read_csv(sweep / "results" / "runs.csv")) == 6
    for name in ("accuracy_cost", "curves"):
        assert cv2.imread(str(sweep / "results" / f"{name}.png")) is not None
    assert not (sweep / "results" / "accuracy_size.png").exists()
    main([str(sweep), f"--out={sweep}/again"])
    assert "+5.00" not in capsys.readouterr().out


def test_detectors_are_compared_by_average_precision(tmp_path, capsys):
    for seed, luck in enumerate((0.0, 0.1, 0.2)):
        make_detector(tmp_path, "faster", seed, 0.4 + luck, 0.7)
        make_detector(tmp_path, "mask", seed, 0.42 + luck, 0.7 + luck / 10, 0.3)
    main([str(tmp_path), "--baseline=faster"])
    head, faster, mask = capsys.readouterr().out.splitlines()[:3]
    heads = ["AP (%)", "difference", "AP50 (%)", "difference", "mask AP (%)"]
    assert re.split("  +", head)[2:7] == heads
    assert "50.00 ± 24.84" in faster and "+" not in faster and "+2.00 ± 0.00" in mask
    assert "+1.00 ± 2.48" in mask and "30.00 ± 0.00" in mask
    [base, other] = json.loads((tmp_path / "results" / "table.json").read_text())
    assert base["mask_AP"] is None and other["AP50_difference"] == pytest.approx(0.01)
    assert other["difference"] == pytest.approx(0.02) and other["mask_AP_difference"] is None
    assert "ece" not in base and "top1" not in base and base["multiply_adds"] > 1e6
    rows = read_csv(tmp_path / "results" / "runs.csv")
    assert [row["mask_AP"] for row in rows] == [None] * 3 + [0.3] * 3
    make_run(tmp_path, "head=gavp", 0, 0.5)
    with pytest.raises(UsageError, match="a classifier and a detector"):
        main([str(tmp_path)])


def test_accuracy_against_training_size(sweep):
    rows = list(read_folder(sweep).values())
    for number, row in enumerate(rows):
        size = 100 * (1 + number // 3)
        rows[number] = {**row, "examples": size, "method": f"head=gavp,train_split=train_{size}"}
    lines = summarize(rows)
    assert [line.examples for line in lines] == [100, 200]
    assert "| head=gavp,train_split=train_100 | 3 | 60.00 ± 24.84 |" in as_markdown(lines)
    assert draw_sizes(sweep / "sizes.png", lines, "sizes") and (sweep / "sizes.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input.eval_split": "train"}, "with eval_split 'test' and 'other' with 'train'"),
        ({"input.dataset": "digits/0-4"}, "make a table of each"),
        ({"input.eval_transforms": "center_crop(6)"}, "eval_transforms ''"),
    ],
)
def test_runs_of_different_data_are_refused(sweep, changes, message):
    make_run(sweep, "other", 0, 0.5, **changes)
    with pytest.raises(UsageError, match=message):
        main([str(sweep)])
    assert not (sweep / "results").exists()


def test_what_is_no_comparison_is_refused(sweep, tmp_path):
    with pytest.raises(UsageError, match=r"no method 'head=gap'\. Did you mean 'head=gavp'"):
        main([str(sweep), "--baseline=head=gap"])
    with pytest.raises(UsageError, match="holds a run with results"):
        main([str(tmp_path)])
    make_run(sweep, "head=gavp", 7, 0.5, num_epochs=2)
    with pytest.raises(UsageError, match="'head=gavp' have different configs"):
        main([str(sweep)])


def test_a_fingerprint_is_of_what_decides_about_a_result():
    config = with_whole_model(digits.get_config())
    before = fingerprint(config)
    config.seed, config.input.num_workers, config.input.cache = 3, 7, False
    assert fingerprint(config) == before
    config.model.of_tomorrow = None
    assert fingerprint(config) == before
    config.optimizer.learning_rate = 0.2
    assert fingerprint(config) != before


@pytest.mark.parametrize("kind", ["ssd", "mask"])
def test_a_fingerprint_is_of_the_whole_detector(kind):
    config = digit_scenes.get_config(kind)
    whole = with_whole_model(config)
    assert as_json(whole) != as_json(config) and fingerprint(whole) == fingerprint(config)
    whole.model.detector.overlap = 0.3
    assert fingerprint(whole) != fingerprint(config)


def test_rows_outlive_a_file(sweep, tmp_path):
    rows = list(read_folder(sweep).values())
    write_csv(tmp_path / "rows.csv", rows)
    again = read_csv(tmp_path / "rows.csv")
    assert tuple(again[0]) == FIELDS and again[0]["examples"] is None
    for name in ("method", "seed", "top1", "multiply_adds", "config", "eval_transforms"):
        assert [row[name] for row in again] == [row[name] for row in rows]
    assert read_csv(tmp_path / "none.csv") == []


def test_steps_are_timed_in_turns():
    config = digits.get_config()
    config.batch_size, config.model.representation.name = 8, "gavp"
    [(name, found)] = speed.measure({"a": (config, 8)}, turns=2).items()
    assert name == "a" and found.images_per_second > 1 and (found.memory or 1e5) > 1e4
