"""A trace of a few training steps."""

import tempfile
from pathlib import Path

import jax

from sop.training.storage import copy_files


class Tracer:
    """Traces `steps` training steps, after the first few, into `directory`.

    TensorBoard's profile plug-in reads the folder; https://ui.perfetto.dev opens the
    `*.trace.json.gz` in it.

    Args:
      directory: made when the trace is written.
      steps: 0 for no trace.
      skip: steps left out first: they compile and fill queues.
    """

    def __init__(self, directory: Path, steps: int, skip: int = 5):
        self._directory = directory
        self._first, self._last = skip, skip + steps
        self._count = 0
        self._draft: tempfile.TemporaryDirectory | None = None

    def after_step(self) -> None:
        """To be called after each step."""
        self._count += 1
        if self._first < self._last:
            if self._count == self._first:
                self._draft = tempfile.TemporaryDirectory()
                jax.profiler.start_trace(self._draft.name)
            elif self._count == self._last:
                self.close()

    def close(self) -> None:
        """Ends a trace that has begun, be it short."""
        if self._draft is not None:
            draft, self._draft = self._draft, None
            with draft:
                jax.profiler.stop_trace()
                copy_files(Path(draft.name), self._directory)
