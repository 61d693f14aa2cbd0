"""Curves of several runs in one picture."""

import cv2
import numpy as np
import pytest

from configs import digits
from sop.config.validation import as_json
from sop.errors import UsageError
from sop.plots import group, main
from sop.training.durable import write_json
from sop.training.history import HistoryFile
from sop.training.plots import draw_curves, draw_groups


def make_run(path, seed, rate=0.1, top5=1.0):
    config = digits.get_config()
    config.seed, config.optimizer.learning_rate = seed, rate
    path.mkdir()
    write_json(path / "config.json", as_json(config))
    HistoryFile(path).begin(entries(seed, rate, top5))
    return str(path)


def entries(seed, rate, top5):
    """Two windows and two evaluations."""
    more = {"train": {"learning_rate": rate}, "eval": {}}
    values = {"loss": 1.0 + seed, "top1": 0.5, "top5": top5}
    return [
        {"split": split, "step": step, "epoch": float(step), **values, **more[split]}
        for step in (1, 2)
        for split in more
    ]


def test_runs_that_differ_in_their_seed_are_one_line(tmp_path, capsys):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "fast", seed=0, rate=0.4))
    groups = group(runs)
    sizes = {name: len(histories) for name, histories in groups.items()}
    assert sizes == {"optimizer.learning_rate=0.1": 3, "optimizer.learning_rate=0.4": 1}
    main([*runs, f"--out={tmp_path / 'curves.png'}"])
    assert "4 runs as 2 lines" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    assert list(group(runs[:1])) == ["run0"]


def test_a_band_is_as_wide_as_the_runs_differ(tmp_path):
    for name, seeds in (("band", (0, 4)), ("line", (2, 2))):
        histories = [entries(seed, 0.1, 0.9) for seed in seeds]
        draw_groups(tmp_path / f"{name}.png", {"a": histories}, title=name)
    band, line = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("band", "line"))
    assert (band[80:350] != 255).any(2).sum() > 2 * (line[80:350] != 255).any(2).sum()


def test_no_panel_where_the_best_five_are_always_right(tmp_path):
    for top5 in (0.9, 1.0):
        draw_curves(tmp_path / f"{top5}.png", entries(0, 0.1, top5), title="")
    four, three = (cv2.imread(str(tmp_path / f"{top5}.png")) for top5 in (0.9, 1.0))
    corner = np.s_[400:, 560:]
    assert (four[corner] != 255).any() and (three[corner] == 255).all()


def test_a_rate_that_drops_is_drawn_as_a_step(tmp_path):
    history = entries(0, 0.5, 1.0)
    history[2]["learning_rate"] = 0.1
    draw_curves(tmp_path / "curves.png", history, title="")
    panel = cv2.imread(str(tmp_path / "curves.png"))[400:700, 80:540]
    blue = (panel == np.array([176, 114, 76])).all(2)
    # Level from epoch 0 to 1, down at once, and level again.
    levels = blue.sum(1) > 150
    assert levels[:50].any() and levels[-100:].any()
    assert blue.sum(0).max() > 150


def test_what_is_no_run_is_refused(tmp_path):
    run = make_run(tmp_path / "run", 0)
    with pytest.raises(UsageError, match="named twice"):
        group([run, run])
    with pytest.raises(UsageError, match="config"):
        group([str(tmp_path)])
    (tmp_path / "run" / "history.jsonl").unlink()
    with pytest.raises(UsageError, match="nothing to draw yet"):
        group([run])
