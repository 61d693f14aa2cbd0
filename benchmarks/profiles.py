"""Where the time of a jitted function goes: its operations as JAX's profiler times them on CPU."""

import collections
import re
import tempfile
from pathlib import Path

import jax
from jax.profiler import ProfileData
from tables import print_header, print_row

COLUMNS = {"ms": "{:.2f}", "share": "{:.0%}", "operation": "{}", "in JAX": "{}"}


def operations(compiled, run, repetitions=20):
    """Milliseconds of a run by operation, the longest first: [(ms, HLO name, name in JAX)].

    Of a fusion JAX's name is that of its root. Operations that run side by side on two cores
    add up to more than the run.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` gives, for the names.
      run: () → None, runs it once to its end.
      repetitions: runs to average over, after one that does not count.
    """
    names = dict(re.findall(r"%?([\w.-]+) = .*op_name=\"([^\"]*)\"", compiled.as_text()))
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repetitions):
                run()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(trace))
    total = collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    total[operation] += event.duration_ns / repetitions / 1e6
    return [(ms, name, names.get(name, "")) for name, ms in total.most_common()]


def print_operations(title, found, least=0.02):
    """A table of those operations that take at least this share of the sum."""
    total = sum(ms for ms, _, _ in found)
    print(f"\n{title}: {total:.2f} ms in operations")
    print_header(COLUMNS)
    for ms, name, source in found:
        if ms >= least * total:
            values = (ms, ms / total, name, source)
            print_row(COLUMNS, dict(zip(COLUMNS, values, strict=True)))
