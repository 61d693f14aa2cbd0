"""Curves as TensorBoard reads them."""

import time
from pathlib import Path


class Events:
    """A new file of events in `folder`, from `step` on: older files' later events are forgotten.

    tensorboardX is imported here alone, since it imports PyTorch where that is installed, which
    takes seconds.

    Args:
      step: the first that events will be of.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # The library names files by the second; a kill and a restart may be closer than that.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def write(self, step: int, name: str, value: float) -> None:
        """One point of a curve."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self._file.write_event(event)

    def flush(self) -> None:
        """Writes all of them to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
