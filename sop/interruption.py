"""SIGINT (Ctrl-C) and SIGTERM, answered at once whatever the program is doing."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FROM_HANDLER = 128  # marks a note; signals' numbers are smaller
_listeners: list[Callable[[str], object]] = []


def tell_of_end(listener: Callable[[str], object]) -> None:
    """Has a function called with the sentence that this process ends with at a first signal."""
    _listeners.append(listener)


def end(number: int) -> NoReturn:
    """Ends the process with the status of one that signal `number` ended, cleaning nothing up."""
    os._exit(128 + number)


def say(sentence: str) -> None:
    """Writes on stderr past Python's streams: the main thread may have been stopped inside them."""
    start = "\n" if os.isatty(2) else ""  # after the ^C or the bar that stands there
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{sentence}\n".encode())


class Interruption:
    """A context in which the first SIGINT or SIGTERM calls `first`, and a second ends the process.

    Both happen at once. Python runs a signal's handler between two instructions of the main thread,
    so not while that compiles or computes, which may take minutes. But the interpreter writes the
    signal's number into a pipe when it comes (`signal.set_wakeup_fd`), and a thread reads it here.

    Only the main thread may enter it. Contexts may be nested; the inner one answers.
    """

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        signal.set_wakeup_fd(self._previous_pipe)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        os.close(self._pipe)  # ends the thread

    def listen(self) -> None:
        """Enters the context for good: signals are answered until the process has ended."""
        self._answered = False
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._previous_pipe = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._answer, args=(reading,), daemon=True).start()

    def first(self, number: int) -> None:
        """The answer to the first signal: a sentence, and the end."""
        sentence = f"Stopped by {signal.Signals(number).name}: nothing to save."
        say(sentence)
        for listener in _listeners:
            listener(sentence)
        end(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # An event loop in the main thread, as Orbax runs, takes the signals' notes for itself.
        with contextlib.suppress(OSError):
            os.write(self._pipe, bytes([_FROM_HANDLER | number]))

    def _answer(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as notes:
            written = {0: 0, _FROM_HANDLER: 0}  # each signal is noted by one of the two or by both
            while note := notes.read(1):
                written[note[0] & _FROM_HANDLER] += 1
                number = note[0] & ~_FROM_HANDLER
                if max(written.values()) > 1:
                    end(number)
                if not self._answered:
                    self.first(number)
                    self._answered = True


class Unwinding(Interruption):
    """A context that the first signal leaves by an exception, so that what is half made is removed.

    Its process then ends. For commands whose unfinished files are large.
    """

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if isinstance(error, _Interrupted):
            end(error.number)
        super().__exit__(kind, error, traceback)

    def first(self, number: int) -> None:
        say(f"Stopped by {signal.Signals(number).name}: removing what is incomplete.")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        super()._handle(number, frame)
        while not self._answered:  # else the process may end before
            time.sleep(0.001)
        raise _Interrupted(number)


class _Interrupted(BaseException):
    def __init__(self, number: int):
        self.number = number
