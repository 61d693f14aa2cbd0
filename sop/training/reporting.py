"""What a run tells the person who watches it: lines or a bar, TensorBoard events, curves, results.

How a training loop uses it, alike in every process (only the first one's is enabled):

    reporter = Reporter(workdir, enabled=jax.process_index() == 0, total_steps=…, …)
    reporter.start(config, variables, jax.devices(), step=0 or restored step, saved=what was saved)
    for step in …:
        state, metrics = train_step(state, batch)
        reporter.train(step, metrics)  # device arrays; does not wait for them
        with reporter.pause():  # time that is not training
            reporter.evaluation(step, evaluate(…))
            checkpoints.save(state, {"report": reporter.state(), …})
    reporter.finish()
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from sop.training.plots import draw_curves
from sop.training.profiling import Tracer
from sop.training.tables import config_table, parameter_table
from sop.training.workdir import write_atomically, write_json

Metrics = Mapping[str, Any]
HISTORY = "history.jsonl"


class Reporter:
    """Reports a run on the screen and into its work folder.

    - `history.jsonl`: a line for each window of training steps and for each evaluation, {'split':
      'train' or 'eval', 'step', 'epoch', 'loss', 'top1', 'top5', …}. It holds no times: that of an
      interrupted run equals that of an uninterrupted one.
    - TensorBoard events: the same scalars, and images per second.
    - `curves.png` and `results.json`: of the history so far, replaced at each evaluation.

    A window holds `log_every` steps, fewer where an evaluation ends it; its entry has the means.

    Args:
      workdir: an existing folder.
      enabled: False in every process but the first; all methods then do nothing.
      total_steps: of the run.
      steps_per_epoch: says epochs for steps.
      batch_size: examples per step, over all devices.
      log_every: steps in a window.
      learning_rate: steps taken before → rate of the next one.
      profile_steps: so many steps are traced into `WORKDIR/profile`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        enabled: bool,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        log_every: int,
        learning_rate: Callable[[int], float],
        profile_steps: int = 0,
    ):
        self._workdir = Path(workdir)
        self._enabled = enabled
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._log_every = log_every
        self._learning_rate = learning_rate
        self._history: list[dict[str, Any]] = []
        self._window = _Window()
        self._speed = _Speed(batch_size)
        self._tracer = Tracer(self._workdir / "profile", profile_steps if enabled else 0)
        self._about: dict[str, Any] = {}
        self._bar: tqdm | None = None
        self._events: EventsWriter | None = None

    def start(
        self,
        config: ConfigDict,
        variables: Mapping[str, Any],
        devices: Sequence[jax.Device],
        *,
        step: int = 0,
        saved: Mapping[str, float] | None = None,
    ) -> None:
        """Prints the config, the devices and the parameters, and rewinds the history to `step`.

        Args:
          step: steps taken before; what an earlier process reported of later ones is dropped.
          saved: what `state` returned at that step.
        """
        if not self._enabled:
            return
        kinds = sorted({device.device_kind for device in devices})
        processes = len({device.process_index for device in devices})
        self.say("Config\n" + config_table(config))
        self.say(f"Devices: {len(devices)} × {', '.join(kinds)} in {processes} process(es)")
        self.say("Parameters\n" + parameter_table(variables))
        sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
        self._about = {"parameters": sum(sizes), "devices": len(devices), "device_kind": kinds[0]}

        self._window = _Window(saved)
        entries = read_history(self._workdir)
        self._history = [entry for entry in entries if entry["step"] <= step]
        lines = [json.dumps(entry) + "\n" for entry in self._history]
        write_atomically(self._workdir / HISTORY, "".join(lines))
        # The number of the process keeps two starts within a second apart.
        self._events = EventsWriter(str(self._workdir / "events"), f".{os.getpid()}")
        if step:
            self._event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._publish()
        if sys.stdout.isatty() and sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining}"
            form += " left"
            self._bar = tqdm(total=self._total_steps, initial=step, bar_format=form)

    def train(self, step: int, metrics: Metrics) -> None:
        """Takes note of training step `step` (the first is 1).

        Args:
          metrics: scalars, still being computed: they are fetched at the end of their window, once
            the step after it is on its way.
        """
        self._tracer.after_step(metrics)
        if not self._enabled:
            return
        self._speed.after_step(metrics)
        if self._window.count >= self._log_every:
            self._close_window()
        self._window.add(step, metrics)
        if self._bar is not None:
            self._bar.update()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of an evaluation after step `step`: 'loss', 'top1', 'top5', as numbers."""
        if not self._enabled:
            return
        self._close_window()
        entry = self._entry("eval", step, metrics)
        self.say(f"{self._place(step)}: evaluation {describe(entry)}")
        self._publish()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A time that images per second leave out: evaluation, writing of checkpoints."""
        if not self._enabled:
            yield
            return
        self._window.fetch()
        self._speed.stop()
        try:
            yield
        finally:
            self._speed.go()

    def state(self) -> dict[str, float]:
        """The open window, for the checkpoint; numbers only, {} where not enabled."""
        if self._window.count >= self._log_every:
            self._close_window()
        return self._window.state()

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
        last, best = evaluations[-1], _best(evaluations)
        self.say(
            f"Finished at {self._place(last['step'])}: {describe(last)} on the evaluation split; "
            f"best top-1 {best['top1']:.2%} after step {best['step']}"
        )

    def close(self) -> None:
        """Puts the bar away and closes the files; harmless to repeat."""
        self._tracer.close()
        if self._enabled and self._window.count >= self._log_every:
            self._close_window()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _close_window(self) -> None:
        if not self._window.count:
            return
        step, means = self._window.close()
        self._speed.close_window()
        means["learning_rate"] = float(self._learning_rate(step - 1))
        entry = self._entry("train", step, means)
        if self._speed.rate is not None:
            self._scalar("train/images_per_second", step, self._speed.rate)
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {entry['epoch']:.1f}", refresh=False)
            self._bar.set_postfix_str(self._progress(entry))
        else:
            left = self._speed.left(self._total_steps - step)
            self.say(f"{self._place(step)}: {self._progress(entry)}, {left} left")

    def _progress(self, entry: Mapping[str, Any]) -> str:
        rate = "" if self._speed.rate is None else f", {self._speed.rate:.0f} images/s"
        return f"loss {entry['loss']:.4f}, top-1 {entry['top1']:.2%}{rate}"

    def _place(self, step: int) -> str:
        epochs = self._total_steps / self._steps_per_epoch
        done = step / self._steps_per_epoch
        return f"step {step}/{self._total_steps}, epoch {done:.1f}/{epochs:g}"

    def _entry(self, split: str, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        entry = {"split": split, "step": step, "epoch": step / self._steps_per_epoch}
        entry |= {name: float(value) for name, value in values.items()}
        self._history.append(entry)
        with open(self._workdir / HISTORY, "a") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in values.items():
            self._scalar(f"{split}/{name}", step, value)
        if self._events is not None:
            self._events.flush()
        return entry

    def _scalar(self, tag: str, step: int, value: float) -> None:
        self._event(step, summary=scalar(tag, float(value)))

    def _event(self, step: int, **what: Any) -> None:
        if self._events is not None:
            self._events.write_event(Event(wall_time=time.time(), step=step, **what))

    def _evaluations(self) -> list[dict[str, Any]]:
        return [entry for entry in self._history if entry["split"] == "eval"]

    def _publish(self) -> None:
        evaluations = self._evaluations()
        if not evaluations:
            return
        last, best = (
            {name: value for name, value in entry.items() if name != "split"}
            for entry in (evaluations[-1], _best(evaluations))
        )
        timing = {"images_per_second": self._speed.overall}
        write_json(
            self._workdir / "results.json", {**last, "best": best, **self._about, "timing": timing}
        )
        draw_curves(self._workdir / "curves.png", self._history, title=str(self._workdir))


def describe(metrics: Mapping[str, float]) -> str:
    """'loss …, top-1 … %, top-5 … %' of accuracies in [0, 1]."""
    shares = (
        f"{label} {metrics[key]:.2%}" for key, label in (("top1", "top-1"), ("top5", "top-5"))
    )
    return ", ".join((f"loss {metrics['loss']:.4f}", *shares))


def read_history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of `history.jsonl`; a last line that a kill cut short is left out."""
    path = Path(workdir) / HISTORY
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _best(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(evaluations, key=lambda entry: (entry["top1"], entry["step"]))


class _Window:
    """Sums of metrics over the steps since the last entry; the newest still on the devices."""

    def __init__(self, saved: Mapping[str, Any] | None = None):
        saved = saved or {"step": 0, "count": 0, "sums": {}}
        self._step = saved["step"]
        self.count = saved["count"]
        self._sums = dict(saved["sums"])
        self._open: list[Metrics] = []

    def add(self, step: int, metrics: Metrics) -> None:
        self._step = step
        self.count += 1
        self._open.append(metrics)

    def fetch(self) -> None:
        """Waits for the devices."""
        for metrics in jax.device_get(self._open):
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._open = []

    def state(self) -> dict[str, Any]:
        self.fetch()
        return {"step": self._step, "count": self.count, "sums": dict(self._sums)}

    def close(self) -> tuple[int, dict[str, float]]:
        """The last step and the means; empties the window."""
        self.fetch()
        means = {name: total / self.count for name, total in self._sums.items()}
        self.count, self._sums = 0, {}
        return self._step, means


class _Speed:
    """Images per second of training, of the last window and of all since the program started.

    The first step, which compiles, does not count; nor do pauses.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._running_since: float | None = None
        self._started: float | None = None
        self._window = (0, 0.0)  # steps, seconds
        self._total = (0, 0.0)
        self.rate: float | None = None

    def after_step(self, metrics: Metrics) -> None:
        if self._started is None:
            jax.block_until_ready(metrics)
            self._started = self._running_since = time.perf_counter()
        else:
            self._window = (self._window[0] + 1, self._window[1])

    def stop(self) -> None:
        if self._running_since is not None:
            steps, seconds = self._window
            self._window = (steps, seconds + time.perf_counter() - self._running_since)
            self._running_since = None

    def go(self) -> None:
        if self._started is not None:
            self._running_since = time.perf_counter()

    def close_window(self) -> None:
        paused = self._running_since is None
        self.stop()
        steps, seconds = self._window
        if steps:
            self.rate = steps * self._batch_size / seconds
        self._total = (self._total[0] + steps, self._total[1] + seconds)
        self._window = (0, 0.0)
        if not paused:
            self.go()

    @property
    def overall(self) -> float | None:
        steps, seconds = self._total
        return steps * self._batch_size / seconds if steps else None

    def left(self, steps: int) -> str:
        """How long so many steps will take, at the pace so far with all its pauses."""
        if not self._total[0]:
            return "?"
        pace = (time.perf_counter() - self._started) / self._total[0]
        return str(timedelta(seconds=round(steps * pace)))
