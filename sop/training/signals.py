"""Stopping when asked to: SIGTERM and Ctrl-C, agreed upon by all processes of a run."""

import signal
from collections import deque
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sop.training.step import replicated, to_devices


class StopRequest:
    """A context in which the first SIGTERM or SIGINT is noted instead of ending the process.

    A second one acts as usual. Only the main thread may enter it.
    """

    # A signal may reach one process alone, but all must stop at the same step: each step their
    # notes are combined on the devices, and the answer is read this many steps later, when it is
    # there without waiting.
    _LAG = 2

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._local_devices = len(mesh.local_devices)
        self._answers: deque[jax.Array] = deque()
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._previous: dict[int, object] = {}
        self.requested = False

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def agreed(self) -> bool:
        """Whether all processes stop now; each must ask once after every step."""
        if jax.process_count() == 1:
            return self.requested
        note = np.full(self._local_devices, self.requested, np.int32)
        self._answers.append(self._any(to_devices(self._mesh, {"stop": note})["stop"]))
        return len(self._answers) > self._LAG and bool(self._answers.popleft())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
