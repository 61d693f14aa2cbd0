"""What a run tells the person who watches it: lines or a bar, TensorBoard events, curves, results.

How a training loop uses it, alike in every process (only the first one's is enabled):

    reporter = Reporter(workdir, stages, log_every=…, enabled=…)
    reporter.start(config, variables, devices, step=0 or restored step, saved=what was saved)
    for step in …:
        …
        reporter.train(step, metrics)
        with reporter.pause():  # time that is not training
            reporter.evaluation(step, evaluate(…))
            checkpoints.save(state, {"report": reporter.state(), …})
    reporter.finish()
"""

import json
import os
import re
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from sop.training.durable import write_json
from sop.training.events import Events
from sop.training.history import HISTORY, HistoryFile, read_history
from sop.training.plots import draw_curves
from sop.training.profiling import Tracer
from sop.training.scores import best_score, describe, describe_best
from sop.training.stages import Stage, stage_at
from sop.training.storage import locate
from sop.training.tables import config_table, parameter_table


class Reporter:
    """Reports a run on the screen and into its work folder.

    - `history.jsonl`: a line for each window of training steps and for each evaluation, see
      `sop.training.history`.
    - TensorBoard events: the same scalars, and images per second.
    - `curves.png` and `results.json`: of the history so far, replaced at each evaluation.

    A picture or an event file that cannot be written is said once and ends nothing.

    Windows hold about `log_every` steps, such that an epoch is cut into equal ones; their entries
    hold the means.

    Args:
      workdir: an existing folder.
      stages: of the run, see `sop.training.stages`.
      log_every: steps in a window.
      profile_steps: so many steps are traced into `WORKDIR/profile`.
      enabled: False in every process but the first; all methods then do nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        stages: Sequence[Stage],
        *,
        log_every: int,
        profile_steps: int = 0,
        enabled: bool = True,
    ):
        self._workdir = locate(workdir)
        self._stages = stages
        self._last_step = stages[-1].last_step
        self._log_every = log_every
        self._tracer = Tracer(self._workdir / "profile", profile_steps if enabled else 0)
        self._enabled = enabled
        self._history: list[dict[str, Any]] = []
        self._file = HistoryFile(workdir)
        self._best: dict[str, Any] | None = None
        self._window = _Window()
        self._speed = _Speed()
        self._about: dict[str, Any] = {}
        self._bar: tqdm | None = None
        self._events: Events | None = None
        self._failed: set[Path] = set()

    def start(
        self,
        config: ConfigDict,
        variables: Mapping[str, Any],
        devices: Sequence[jax.Device],
        *,
        step: int = 0,
        saved: Mapping[str, Any] | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> None:
        """Prints the config, the devices and the parameters, and rewinds the history to `step`.

        Args:
          step: steps taken before; what an earlier process reported of later ones is dropped.
          saved: what `state` returned at that step.
          scores: of the evaluation after that step, if there was one.
        """
        if not self._enabled:
            return
        kinds = sorted({device.device_kind for device in devices})
        processes = len({device.process_index for device in devices})
        self.say("Config\n" + config_table(config))
        self.say(f"Devices: {len(devices)} × {', '.join(kinds)} in {processes} process(es)")
        self.say("Parameters\n" + parameter_table(variables))
        sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
        self._about = {
            "parameters": sum(sizes),
            "devices": len(devices),
            "device_kind": kinds[0],
            **_data(config),
        }

        self._rewind(step, saved or {}, scores)
        with self._spared(self._workdir / "events"):
            self._events = Events(self._workdir, step + 1)
        self._publish()
        if sys.stdout.isatty() and sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining}"
            form += " left"
            self._bar = tqdm(total=self._last_step, initial=step, bar_format=form)

    def _rewind(
        self, step: int, saved: Mapping[str, Any], scores: Mapping[str, Any] | None
    ) -> None:
        """The history up to `step`, and what is known of it though lines of it may be lost."""
        # Earlier versions saved the window alone.
        self._window = _Window(saved.get("window") or (saved if "sums" in saved else None))
        entries = [e for e in read_history(self._workdir) if e["step"] <= step]
        self._history = [e for e in entries if e["split"] == "train" or e["step"] < step]
        if lost := saved.get("entries", 0) - len(self._history):
            self.say(
                f"{self._workdir / HISTORY} lacks {lost} of {saved['entries']} entries before step "
                f"{step}, damaged or lost: the curves have gaps there."
            )
        if scores is not None:
            self._history.append(self._entry("eval", step, scores))
        self._file.begin(self._history)
        self._best = _best([*filter(None, [saved.get("best")]), *self._evaluations()])

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of training step `step` (the first is 1) and its metrics."""
        self._tracer.after_step()
        if not self._enabled:
            return
        stage = stage_at(self._stages, step)
        self._window.add(step, metrics)
        self._speed.after_step(stage.config.batch_size)
        if _ends_window(stage, step, self._log_every):
            self._close_window()
        if self._bar is not None:
            self._bar.update()

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes note of an evaluation after step `step`; see `sop.training.scores`."""
        if not self._enabled:
            return
        self._close_window()
        self._enter("eval", step, metrics)
        self._flush()
        self._best = _best([*filter(None, [self._best]), self._history[-1]])
        self.say(f"{self._place(step)}: evaluation {describe(metrics)}")
        self._publish()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A time that images per second leave out: evaluation, writing of checkpoints."""
        self._speed.stop()
        try:
            yield
        finally:
            self._speed.go()

    def state(self) -> dict[str, Any]:
        """For the checkpoint, JSON-able: the open window, the number of entries, the best one.

        The entries are written by then.
        """
        self._flush()
        window = self._window.state()
        return {"window": window, "entries": len(self._history), "best": self._best}

    def say(self, sentence: str) -> None:
        """Prints a line, above the bar."""
        if self._enabled:
            tqdm.write(sentence, file=sys.stdout)
            sys.stdout.flush()

    def finish(self) -> None:
        """Says where everything is and, last, the result."""
        self.close()
        evaluations = self._evaluations()
        if not evaluations:
            return
        curves, checkpoints = self._workdir / "curves.png", self._workdir / "checkpoints"
        self.say(f"Curves: {curves}; checkpoints: {checkpoints}; events: {self._workdir}/events.*")
        last, best = evaluations[-1], self._best
        self.say(
            f"Finished at {self._place(last['step'])}: {describe(last)} on the evaluation split; "
            f"best {describe_best(best)} after step {best['step']}"
        )

    def close(self) -> None:
        """Puts the bar away and closes the files; harmless to repeat."""
        self._tracer.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._events is not None:
            with self._spared(self._workdir / "events"):
                self._events.close()
            self._events = None

    def _close_window(self) -> None:
        if not self._window.count:
            return
        step, means = self._window.close()
        self._speed.close_window()
        rate = stage_at(self._stages, step).learning_rate(step)
        self._enter("train", step, {**means, "learning_rate": rate})
        progress = describe({name: means[name] for name in ("loss", "top1") if name in means})
        if self._speed.rate is not None:
            progress += f", {self._speed.rate:,.0f} images/s"
            self._event(step, "train/images_per_second", self._speed.rate)
        if self._bar is None:
            left = self._speed.left(self._last_step - step)
            self.say(f"{self._place(step)}: {progress}, {left} left")
        else:
            self._bar.set_description_str(f"epoch {self._epochs(step)}", refresh=False)
            self._bar.set_postfix_str(progress)

    def _place(self, step: int) -> str:
        return f"step {step}/{self._last_step}, epoch {self._epochs(step)}"

    def _epochs(self, step: int) -> str:
        total = self._stages[-1].epoch_at(self._last_step)
        return f"{stage_at(self._stages, step).epoch_at(step):.1f}/{total:g}"

    def _entry(self, split: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        epoch = stage_at(self._stages, step).epoch_at(step)
        return {"split": split, "step": step, "epoch": epoch, **values}

    def _enter(self, split: str, step: int, values: Mapping[str, Any]) -> None:
        entry = self._entry(split, step, values)
        self._history.append(entry)
        written = self._file.append(entry)
        for name, value in values.items():
            if name != "count" and isinstance(value, float | int):
                self._event(step, f"{split}/{name}", value)
        if written:
            self._flush_events()

    def _flush(self) -> None:
        """Writes what of the curves is not yet written."""
        if self._file.flush():
            self._flush_events()

    def _flush_events(self) -> None:
        if self._events is not None:
            with self._spared(self._workdir / "events"):
                self._events.flush()

    def _event(self, step: int, name: str, value: float) -> None:
        if self._events is not None:
            with self._spared(self._workdir / "events"):
                self._events.write(step, name, value)

    def _evaluations(self) -> list[dict[str, Any]]:
        return [entry for entry in self._history if entry["split"] == "eval"]

    def _publish(self) -> None:
        evaluations = self._evaluations()
        if not evaluations:
            return
        last, best = (
            {name: value for name, value in entry.items() if name != "split"}
            for entry in (evaluations[-1], self._best)
        )
        timing = {"images_per_second": self._speed.overall}
        write_json(
            self._workdir / "results.json", {**last, "best": best, **self._about, "timing": timing}
        )
        picture = self._workdir / "curves.png"
        with self._spared(picture):
            draw_curves(picture, self._history, title=str(self._workdir))

    @contextmanager
    def _spared(self, file: Path) -> Iterator[None]:
        """Around the writing of what a run can do without: its first failure is said."""
        try:
            yield
        except Exception as error:  # not worth a run, whatever it is
            if file not in self._failed:
                self._failed.add(file)
                self.say(f"{file} cannot be written ({error}); the run goes on without it.")


def report_evaluation(
    workdir: str | os.PathLike, scores: Mapping[str, Any], config: ConfigDict
) -> None:
    """Writes the evaluation of one checkpoint to a file of its own, and says it.

    It is `evaluations/DATASET-SPLIT-stepSTEP-HASH.json`, by data, split and step, the hash standing
    for the transforms: `results.json` is the training run's.

    Args:
      scores: 'step', 'epoch' and those of the task; 'count'.
      config: says on which data.
    """
    data = {**_data(config), "normalization": config.input.normalization}
    given = {name: config.input.get(name) for name in ("mean", "deviation")}
    data |= {name: list(value) for name, value in given.items() if value is not None}
    digest = f"{zlib.crc32(json.dumps(data).encode()):08x}"
    words = data["dataset"], data["eval_split"], f"step{scores['step']}", digest
    name = "-".join(re.sub(r"[^\w.]+", "_", word).strip("_")[-60:] for word in words)
    path = locate(workdir) / "evaluations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, {**scores, **data})
    print(f"Results: {path}")
    print(
        f"Evaluated step {scores['step']}, epoch {scores['epoch']:.1f}: {describe(scores)} "
        f"on the {scores['count']} examples of the evaluation split"
    )


def _data(config: ConfigDict) -> dict[str, str]:
    """What an evaluation was made on."""
    names = ("dataset", "eval_split", "eval_transforms")
    return {name: config.input[name] for name in names}


def _best(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return max(evaluations, key=lambda entry: (best_score(entry), entry["step"]), default=None)


def _ends_window(stage: Stage, step: int, log_every: int) -> bool:
    """Whether one of the equal parts, about `log_every` steps long, of an epoch ends at `step`."""
    length = stage.train.steps_per_epoch
    parts = max(1, round(length / log_every))
    before = (step - stage.first_step - 1) % length
    return (before + 1) * parts // length > before * parts // length


class _Window:
    """Sums of metrics over the steps since the last entry."""

    def __init__(self, saved: Mapping[str, Any] | None = None):
        saved = saved or {"step": 0, "count": 0, "sums": {}}
        self.count: int = saved["count"]
        self._step: int = saved["step"]
        self._sums: dict[str, float] = dict(saved["sums"])

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.count += 1
        self._step = step
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def state(self) -> dict[str, Any]:
        return {"step": self._step, "count": self.count, "sums": dict(self._sums)}

    def close(self) -> tuple[int, dict[str, float]]:
        """The last step and the means; empties the window."""
        means = {name: total / self.count for name, total in self._sums.items()}
        self.count, self._sums = 0, {}
        return self._step, means


class _Speed:
    """Images per second of training, in the last window and since the program started.

    The first step, which compiles, does not count, nor do pauses.
    """

    def __init__(self):
        self._started: float | None = None
        self._running_since: float | None = None
        self._images, self._seconds = 0, 0.0  # of the open window
        self._all_images, self._all_seconds, self._all_steps = 0, 0.0, 0
        self.rate: float | None = None

    def after_step(self, images: int) -> None:
        if self._started is None:
            self._started = self._running_since = time.perf_counter()
        else:
            self._images += images
            self._all_steps += 1

    def stop(self) -> None:
        if self._running_since is not None:
            self._seconds += time.perf_counter() - self._running_since
            self._running_since = None

    def go(self) -> None:
        if self._started is not None:
            self._running_since = time.perf_counter()

    def close_window(self) -> None:
        paused = self._running_since is None
        self.stop()
        if self._images:
            self.rate = self._images / self._seconds
        self._all_images += self._images
        self._all_seconds += self._seconds
        self._images, self._seconds = 0, 0.0
        if not paused:
            self.go()

    @property
    def overall(self) -> float | None:
        return self._all_images / self._all_seconds if self._all_images else None

    def left(self, steps: int) -> str:
        """How long so many steps will take at the pace so far, with all its pauses."""
        if not self._all_steps:
            return "?"
        pace = (time.perf_counter() - self._started) / self._all_steps
        return str(timedelta(seconds=round(steps * pace)))
