"""The images of one split by index, transformed: decoded on demand, or kept in memory."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

import cv2
import grain
import numpy as np

from sop.data import randomness, transforms
from sop.data.images import BadImageError, Region, image_size, is_jpeg, reduction
from sop.data.source import Source
from sop.errors import UsageError
from sop.progress import shown

Batch = dict[str, np.ndarray]
_NUM_PROBED = 1000  # images whose sizes are compared where no transform fixes the size


@dataclasses.dataclass
class Images:
    """The transformed images of one split by index, decoded on demand.

    Attributes:
      buckets: shape and type of each array of a batch, for one example, by name; of several sizes
        of images one after the other.
      groups: int [n], which of them each example belongs to; None: there is one. A batch holds
        examples of one bucket.
    """

    source: Source
    pipeline: transforms.Pipeline
    seed: int
    skip_bad: bool  # or stop
    replace_bad: bool  # by the next good one, or leave them black
    num_bytes: ClassVar[int] = 0  # of what is kept in memory
    check: Callable[[bytes], None] = lambda data: None  # called with each encoded image
    bad: set[str] = dataclasses.field(default_factory=set)
    _bad_examples: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        self.shape = (*_image_size(self.source, self.pipeline), 3)
        views = self.pipeline.num_views
        self.row_shape = (views, *self.shape) if views else self.shape
        self.buckets = [{"image": (self.row_shape, np.uint8), "label": ((), np.int32)}]
        self.groups: np.ndarray | None = None

    def prepare(self, num_workers: int) -> None:
        """To be called before `load`."""

    def load(self, examples: np.ndarray, epoch: int, bucket: int = 0) -> Batch:
        """[n] indices → the arrays of their bucket, and 'mask' [n]: is the image good?"""
        batch = {
            name: np.zeros((len(examples), *shape), dtype)
            for name, (shape, dtype) in {**self.buckets[bucket], "mask": ((), np.bool_)}.items()
        }
        for row, example in enumerate(examples.tolist()):
            for candidate in self._candidates(example):
                if self.groups is not None and self.groups[candidate] != bucket:
                    continue
                if found := self._read(candidate, epoch):
                    for name, value in {**found, "mask": True}.items():
                        batch[name][row] = value
                    break
            else:
                if self.replace_bad:
                    _refuse_all_bad(self.source)
        return batch

    def _candidates(self, example: int) -> Iterator[int]:
        """The example, and those after it that may stand in for it; not what is known as bad."""
        others = range(1, len(self.source)) if self.replace_bad else ()
        for candidate in (example, *((example + i) % len(self.source) for i in others)):
            if candidate not in self._bad_examples:
                yield candidate

    def _read(self, example: int, epoch: int) -> dict[str, Any] | None:
        """One example's row of each array; None: its image is bad."""
        draws = randomness.uniforms(self.seed, epoch, example, self.pipeline.num_draws)
        try:
            return self._made(example, *self.source[example], draws)
        except BadImageError as error:
            name = self.source.describe(example)
            if not self.skip_bad:  # nor is it remembered: a batch made ahead may meet it first
                raise UsageError(
                    f"The image {name} cannot be decoded, {error}; replace it, or set "
                    "config.input.bad_images = 'skip'."
                ) from error
            self._bad_examples.add(example)
            if name not in self.bad:
                self.bad.add(name)
                found = f"The image {name} cannot be decoded, {error}; it is skipped"
                print(f"{found} ({len(self.bad)} so far).", file=sys.stderr)
            return None

    def _made(self, example: int, data: bytes, label: int, draws: np.ndarray) -> dict[str, Any]:
        """The row of an encoded image and its label."""
        self.check(data)
        image = self.pipeline.decode(data, draws)
        if image.shape != self.row_shape:
            raise UsageError(
                f"The image {self.source.describe(example)} becomes {_by(image.shape[-3:])}, "
                f"others {_by(self.shape)}; add a transform to config.input that fixes the size, "
                f"such as center_crop({min(self.shape[:2])})."
            )
        return {"image": image, "label": label}


class CachedImages:
    """The same as `Images`, from memory: what is fixed is done once, the rest on whole batches."""

    def __init__(self, images: Images):
        self.source, self.shape, self.bad = images.source, images.shape, images.bad
        self.row_shape, self.buckets, self.groups = images.row_shape, images.buckets, images.groups
        self._seed, self._replace_bad = images.seed, images.replace_bad
        fixed, self._rest = images.pipeline.split()
        check = self._refuse_reduced if not fixed.transforms else images.check
        self._decoder = dataclasses.replace(images, pipeline=fixed, replace_bad=False, check=check)
        self.num_bytes = len(self.source) * math.prod(self._decoder.shape)
        self._cached: tuple[np.ndarray, ...] | None = None

    def prepare(self, num_workers: int) -> None:
        """Decodes everything, unless that was done before."""
        if self._cached:
            return
        count = len(self.source)
        images = np.zeros((count, *self._decoder.shape), np.uint8)
        labels, good = np.zeros(count, np.int32), np.zeros(count, bool)
        arrays = {"image": images, "label": labels, "mask": good}
        parts = np.array_split(np.arange(count), math.ceil(count / 256))

        def load(number: int) -> Batch:
            return self._decoder.load(parts[number], epoch=0)

        loaded = zip(parts, prefetch(load, 0, len(parts), num_workers), strict=True)
        counted = ((len(part), (part, batch)) for part, batch in loaded)
        for part, batch in shown(counted, count, "decoding into memory"):
            for name, array in arrays.items():
                array[part] = batch[name]
        stand_in = np.arange(count)
        if self._replace_bad:
            if not good.any():
                _refuse_all_bad(self.source)
            stand_in = np.flatnonzero(good)
            stand_in = stand_in[np.searchsorted(stand_in, np.arange(count)) % len(stand_in)]
        self._cached = images, labels, good, stand_in

    def load(self, examples: np.ndarray, epoch: int, bucket: int = 0) -> Batch:
        images, labels, good, stand_in = self._cached
        examples = stand_in[examples]
        table = randomness.epoch_uniforms(self._seed, epoch, len(labels), self._rest.num_draws)
        images = self._rest(images[examples], table[examples])
        return {"image": images, "label": labels[examples], "mask": good[examples]}

    def _refuse_reduced(self, data: bytes) -> None:
        """Refuses what would not be the same without the cache: crops of JPEGs decoded smaller."""
        first = self._rest.transforms[0] if self._rest.transforms else None
        if not isinstance(first, transforms.Sampling) or not is_jpeg(data):
            return
        shape = self._decoder.shape
        whole = Region(0, 0, *shape[:2], first.output_size(None))
        if reduction(whole) > 1:
            raise UsageError(
                f"config.input.cache would keep images of {_by(shape)} to make crops of "
                f"{_by(whole.size)}; put a resize before the random crop, or set cache to False."
            )


def _refuse_all_bad(source: Source) -> NoReturn:
    raise UsageError(
        f"None of the {len(source)} images, such as {source.describe(0)}, can be decoded: replace "
        "them, or choose other data in config.input."
    )


def _image_size(source: Source, pipeline: transforms.Pipeline) -> tuple[int, int]:
    """(height, width) of the transformed images, from the headers of some where need be."""
    size = pipeline.output_size(source.image_size)
    if size is not None:
        return size
    names = {}  # by size
    for example in np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(int)).tolist():
        with contextlib.suppress(BadImageError):
            size = pipeline.output_size(image_size(source[example][0]))
            names.setdefault(size, source.describe(example))
    if not names:
        raise UsageError(f"No image such as {source.describe(0)} can be decoded; replace them.")
    if len(names) > 1:
        (size, name), (other_size, other) = list(names.items())[:2]
        raise UsageError(
            f"The images become {_by(size)} ({name}) and {_by(other_size)} ({other}); add a "
            f"transform to config.input that fixes the size, such as center_crop({min(size)})."
        )
    return next(iter(names))


def in_batches(
    examples: np.ndarray, groups: np.ndarray | None, size: int, whole: bool
) -> list[np.ndarray]:
    """Cuts examples into batches of one group each, one group after the other, in their order.

    Args:
      groups: of all examples; None: all are of one.
      size: of a batch.
      whole: leaves out what does not fill a batch.
    """
    if groups is None:
        parts = [examples]
    else:
        theirs = groups[examples]
        parts = [examples[theirs == group] for group in np.unique(groups)]
    cut = [part[start : start + size] for part in parts for start in range(0, len(part), size)]
    return [batch for batch in cut if len(batch) == size or not whole]


def prefetch(function: Callable, start: int, stop: int, num_workers: int) -> Iterator:
    """function(start), …, function(stop − 1), computed ahead by threads, in order."""
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's would compete with them
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=ahead(num_workers))
    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(function).to_iter_dataset(options))


def ahead(num_workers: int) -> int:
    """How many batches are made before they are asked for."""
    return num_workers + 2 if num_workers else 0


def filled(batch: Batch, size: int) -> Batch:
    """Arrays of at most `size` rows, with rows of zeros behind them up to it."""
    margins = {name: [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)] for name, x in batch.items()}
    return {name: np.pad(x, margins[name]) for name, x in batch.items()}


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size[:2]))
