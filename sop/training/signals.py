"""Stopping a run when asked to: SIGTERM and Ctrl-C, agreed upon by all processes."""

from collections import deque
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sop.interruption import Interruption, say
from sop.training.step import replicated, to_devices


class StopRequest(Interruption):
    """A context in which the first SIGTERM or SIGINT asks for a stop, once there is work to save.

    Before, it ends the process, as a second one does at any time. It must enclose all that writes
    checkpoints, the end of writing included.

    Attributes:
      has_work: whether a step has been taken since the last start; to be set by the caller.
      requested: whether this process was asked to stop.
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
        self.has_work = False
        self.requested = False

    def first(self, number: int) -> None:
        if not self.has_work:
            super().first(number)
        say("Stopping after this step, when it is saved; a second signal ends at once.")

    def agreed(self) -> bool:
        """Whether all processes stop now; each must ask equally often, at the same places."""
        if jax.process_count() == 1:
            return self.requested
        note = np.full(self._local_devices, self.requested, np.int32)
        self._answers.append(self._any(to_devices(self._mesh, {"stop": note})["stop"]))
        return len(self._answers) > self._LAG and bool(self._answers.popleft())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        self.requested = True
