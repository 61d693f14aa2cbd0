"""The processes of a run, known to each other from before JAX joins them to their end.

JAX waits for a partner that does not come, or is gone, and then aborts without a sentence. So the
processes first call the roll over plain TCP connections to process 0, at the address at which JAX
will find its coordinator, and keep these connections: whoever ends says why, and one that closes
without a word has died. Each process then prints what happened and ends.

A line on a connection is a JSON object: {'process', 'processes'} from a process that comes,
{'end': sentence or None} from one that ends, with None for an end that all of them come to.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from sop.errors import UsageError

_RETRY = 0.2  # seconds between two calls to a process 0 that is not there yet
_GRACE = 3.0  # seconds that one process waits for what another is about to do or say


class Partners:
    """What a process holds of the others: connections, each watched by a thread.

    Process 0 has one to each process and passes on what it hears; the others have one to it.

    Attributes:
      heard: set when a partner's end is ending this process too.
    """

    def __init__(self, process: int, links: dict[int, socket.socket]):
        self._process, self._links = process, links
        self._lock, self._once = threading.Lock(), threading.Lock()
        self.heard = threading.Event()
        self._watches = [
            threading.Thread(target=self._watch, args=each, daemon=True) for each in links.items()
        ]
        for watch in self._watches:
            watch.start()

    def leave(self, sentence: str | None) -> bool:
        """Tells the others that this process ends, why, or None where all of them do, once.

        Returns:
          Whether they were told; False: a partner's end is already ending this process.
        """
        if not self._once.acquire(blocking=False):
            return False
        if sentence is not None:
            sentence = f"Process {self._process} has ended: {sentence}"
        self._tell_all(self._links, sentence)
        if sentence is not None:
            self._await_ends()
        return True

    def _watch(self, partner: int, link: socket.socket) -> None:
        lines = link.makefile("rb")
        try:
            said = json.loads(lines.readline())["end"]
        except (OSError, ValueError, KeyError):
            said = f"Process {partner} has died: see what it printed last."
        if said is None:
            return
        self._tell_all(self._links.keys() - {partner}, said)
        if self._once.acquire(blocking=False):
            self._end(said)

    def _tell_all(self, partners: Iterable[int], sentence: str | None) -> None:
        for partner in partners:
            with self._lock, contextlib.suppress(OSError):
                _tell(self._links[partner], {"end": sentence})

    def _await_ends(self) -> None:
        """Waits until the others are gone: where process 0 is, JAX aborts those that are left."""
        deadline = time.monotonic() + _GRACE
        for watch in self._watches:
            if watch is not threading.current_thread():
                watch.join(max(deadline - time.monotonic(), 0))

    def _end(self, sentence: str) -> NoReturn:
        """Ends this process, whose main thread may wait for a partner for ever.

        At once, as SIGKILL would, which loses nothing that was saved: soon JAX aborts it.
        """
        print(sentence, file=sys.stderr, flush=True)
        # Whatever the compiled part of JAX, or a traceback, has to say of it adds nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        self.heard.set()
        self._await_ends()
        os._exit(1)


@contextlib.contextmanager
def ends_told(partners: Partners | None) -> Iterator[None]:
    """A context that tells the partners how it ends: a refusal in one process ends all of them."""
    if partners is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        is_refusal = isinstance(error, UsageError)
        # A partner's end makes what is computed together fail here; then its thread says so.
        if not is_refusal and partners.heard.wait(_GRACE):
            sys.exit(1)
        if not partners.leave(str(error) if is_refusal else repr(error)):
            sys.exit(1)
        raise
    partners.leave(None)


def call_roll(coordinator: str, process: int, processes: int, timeout: float) -> Partners:
    """Waits until all processes of a run are there.

    Args:
      coordinator: 'HOST:PORT' of process 0; the port is free again afterwards.
      process, processes: which this is, of how many.
      timeout: seconds to wait.
    Raises:
      UsageError: in every process that is there, if one does not come in time, two have the same
        number, or they do not agree on how many there are.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if process == 0:
        return _gather(int(port), processes, deadline, timeout)
    return _report(host.strip("[]"), int(port), process, processes, deadline, timeout)


def _gather(port: int, processes: int, deadline: float, timeout: float) -> Partners:
    links: dict[int, socket.socket] = {}
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=processes
        )
    except OSError as error:
        raise UsageError(
            f"Process 0 cannot listen at port {port} ({error.strerror}): it is taken, perhaps by "
            "another process 0; choose another port in --coordinator."
        ) from error
    with listener:
        while len(links) < processes - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                link = listener.accept()[0]
                link.settimeout(max(deadline - time.monotonic(), 0.01))
                hello = _hear(link)
                number, count = hello["process"], hello["processes"]
            except (OSError, ValueError, KeyError):
                if time.monotonic() < deadline:
                    continue  # whoever called was no process of ours
                missing = sorted(set(range(1, processes)) - links.keys())
                _refuse(
                    links,
                    f"Process 0 has waited {timeout:g} s for process "
                    f"{', '.join(map(str, missing))} of {processes}: start all of them, or wait "
                    "longer by --timeout.",
                )
            if count != processes:
                _refuse(
                    {**links, -1: link},
                    f"Process 0 was told of {processes} processes, process {number} of "
                    f"{count}: give all of them one --num_processes.",
                )
            if number in links or not 0 < number < processes:
                _refuse(
                    {**links, -1: link},
                    f"Two processes say that they are process {number} of {processes}: give each "
                    "a --process_id of its own.",
                )
            links[number] = link
    for link in links.values():
        _tell(link, {"end": None})
    return Partners(0, _kept(links))


def _report(
    host: str, port: int, process: int, processes: int, deadline: float, timeout: float
) -> Partners:
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.01)
            link = socket.create_connection((host, port), timeout=left)
            _tell(link, {"process": process, "processes": processes})
            link.settimeout(max(deadline - time.monotonic(), 0.01) + _GRACE)
            answer = _hear(link)["end"]
            break
        except (OSError, ValueError) as error:
            if time.monotonic() + _RETRY < deadline:
                time.sleep(_RETRY)
                continue
            raise UsageError(
                f"Process {process} has waited {timeout:g} s for process 0 at {host}:{port} "
                f"({error}): start it, check the address, or wait longer by --timeout."
            ) from error
    if answer is not None:
        raise UsageError(answer)
    return Partners(process, _kept({0: link}))


def _refuse(links: dict[int, socket.socket], sentence: str) -> None:
    for link in links.values():
        with contextlib.suppress(OSError):
            _tell(link, {"end": sentence})
    raise UsageError(sentence)


def _kept(links: dict[int, socket.socket]) -> dict[int, socket.socket]:
    """Connections that may be silent for days, but notice where a machine is gone."""
    for link in links.values():
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return links


def _tell(link: socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps(message).encode() + b"\n")


def _hear(link: socket.socket) -> dict[str, Any]:
    """One line; read by bytes, so that nothing behind it is lost."""
    line = b""
    while not line.endswith(b"\n") and (byte := link.recv(1)) and len(line) < 10_000:
        line += byte
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no message")
    return message
