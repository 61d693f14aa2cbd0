"""How far a long piece of work has come: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

_EVERY = 10  # seconds between two lines

Part = TypeVar("Part")


def shown(
    parts: Iterable[tuple[int, Part]], total: int, what: str, unit: str = "image"
) -> Iterator[Part]:
    """Each part, while stderr shows how many of `total` are done, the rate and the time left.

    Args:
      parts: (how many it holds, the part).
      what: is being done, as 'predicting'.
      unit: of the numbers, in the singular.
    """
    bar = tqdm(
        total=total,
        desc=what,
        unit=f" {unit}s",
        file=sys.stderr,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    start = said = time.monotonic()
    done = 0
    with bar:
        for count, part in parts:
            yield part
            done += count
            bar.update(count)
            now = time.monotonic()
            if bar.disable and done < total and now - said >= _EVERY:
                said, rate = now, done / (now - start)
                left = timedelta(seconds=round((total - done) / rate))
                print(
                    f"{what}: {done:,} of {total:,} {unit}s, {rate:,.1f} {unit}s/s, {left} left",
                    file=sys.stderr,
                    flush=True,
                )
