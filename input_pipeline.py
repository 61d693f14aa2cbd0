"""An experiment's config → batches for training and for evaluation.

Both are functions of the config alone: which examples a batch holds, in which order and with which
random pixels, depends neither on the number of workers nor on that of processes, and any batch can
be made without those before it. Grain runs them ahead of the training loop in threads (OpenCV
and NumPy release the interpreter's lock) and keeps the position, which is all that has to be saved.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np
from ml_collections import ConfigDict

from sop.data import randomness, transforms
from sop.data.images import BadImageError, Region, image_size, is_jpeg, reduction
from sop.data.normalization import check_normalization
from sop.data.sources import Source, open_source
from sop.errors import UsageError

Batch = dict[str, np.ndarray]
_NUM_PROBED = 1000  # images whose sizes are compared where no transform fixes the size


def create_train(config: ConfigDict, process_index: int = 0, process_count: int = 1) -> "Train":
    """Batches for training. Process p of P gets rows [p·B/P, (p+1)·B/P) of each batch of B.

    Raises:
      UsageError: The config does not fit the data.
    """
    rows = _share("batch_size", config.batch_size, process_index, process_count)
    images = _open(config, training=True)
    if config.batch_size > len(images.source):
        raise UsageError(
            f"config.batch_size = {config.batch_size} exceeds the {len(images.source)} examples of "
            f"split {config.input.train_split!r}; set a smaller one."
        )
    return Train(images, config.batch_size, rows, config.seed, config.input.num_workers)


def create_eval(config: ConfigDict, process_index: int = 0, process_count: int = 1) -> "Evaluation":
    """Batches for evaluation, of which each process gets its rows as in training.

    Raises:
      UsageError: The config does not fit the data.
    """
    rows = _share("eval_batch_size", config.eval_batch_size, process_index, process_count)
    images = _open(config, training=False)
    return Evaluation(images, config.eval_batch_size, rows, config.input.num_workers)


class _Batches:
    """What training and evaluation have in common.

    Attributes:
      num_examples, class_names, num_classes: Of the split.
      image_shape: (H, W, 3) of one transformed image, without test-time views.
      bad_images: The names of the undecodable images that this process has met so far.
    """

    def __init__(self, images: "_Images", batch_size: int, rows: slice, num_workers: int):
        self.num_examples = len(images.source)
        self.class_names = images.source.class_names
        self.num_classes = len(self.class_names)
        self.image_shape = images.shape
        self.bad_images = images.bad
        self._images, self._batch_size, self._rows = images, batch_size, rows
        self._num_workers = num_workers

    def _places(self, number: int) -> np.ndarray:
        """This process's places in batch `number`, counted from the first example."""
        start = number * self._batch_size
        return np.arange(start, start + self._batch_size)[self._rows]


class Train(_Batches):
    """Endless batches {'image': uint8 [b, H, W, 3], 'label': int32 [b]}, b = B / processes.

    Epoch e = step // steps_per_epoch shows each example at most once, in an order that depends on
    (seed, e) alone; what does not fill a batch is left out. An example's augmentation depends on
    (seed, e, its index) alone.

    Attributes:
      steps_per_epoch: num_examples // B.
    """

    def __init__(
        self, images: "_Images", batch_size: int, rows: slice, seed: int, num_workers: int
    ):
        super().__init__(images, batch_size, rows, num_workers)
        self.steps_per_epoch = self.num_examples // batch_size
        self._seed = seed

    def iterator(self, start_step: int = 0) -> grain.DatasetIterator:
        """An iterator whose next batch is that of `start_step`.

        Its `get_state()` and `set_state(…)` handle a dict that holds the number of the next step.
        """
        iterator = _prefetched(self._batch, sys.maxsize, self._num_workers)
        iterator.set_state({"next_index": start_step})
        return iterator

    def _batch(self, step: int) -> Batch:
        epoch, step = divmod(step, self.steps_per_epoch)
        # Not Grain's shuffle: an index costs it 14 μs with 2,048 examples, 200 μs with 128.
        order = randomness.order(self._seed, epoch, self.num_examples)
        images, labels, _ = self._images.load(order[self._places(step)], epoch)
        return {"image": images, "label": labels}


class Evaluation(_Batches):
    """Batches {'image': uint8 [b, (V,) H, W, 3], 'label': int32 [b], 'mask': bool [b]}.

    Over all processes every example comes once. All batches have the same size b = B / processes
    and every process gets the same number of them; 'mask' is False in the rows that fill up the
    last batch, and for undecodable images. Each `iter` starts again and gives the same.

    Attributes:
      num_batches: Of one iteration.
    """

    def __init__(self, images: "_Images", batch_size: int, rows: slice, num_workers: int):
        super().__init__(images, batch_size, rows, num_workers)
        self.num_batches = math.ceil(self.num_examples / batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _prefetched(self._batch, self.num_batches, self._num_workers)

    def _batch(self, number: int) -> Batch:
        places = self._places(number)
        real = places[places < self.num_examples]
        arrays = self._images.load(real, epoch=0)
        if missing := len(places) - len(real):
            fill = [np.zeros((missing, *array.shape[1:]), array.dtype) for array in arrays]
            arrays = map(np.concatenate, zip(arrays, fill, strict=True))
        return dict(zip(("image", "label", "mask"), arrays, strict=True))


def _open(config: ConfigDict, training: bool) -> "_Images":
    """The images of the training or the evaluation split, after all that can be refused cheaply."""
    options = config.input
    pipeline = transforms.parse(
        options.train_transforms if training else options.eval_transforms, training=training
    )
    check_normalization(options.normalization)
    if options.bad_images not in ("stop", "skip"):
        raise UsageError(
            f"config.input.bad_images = {options.bad_images!r} is unknown; set 'stop' or 'skip'."
        )
    for key, value in (("seed", config.seed), ("input.num_workers", options.num_workers)):
        if value < 0:
            raise UsageError(f"config.{key} = {value} is negative; set 0 or more.")
    split = options.train_split if training else options.eval_split
    source = open_source(options.dataset, split, options.data_dir)
    if config.model.num_classes != len(source.class_names):
        raise UsageError(
            f"config.model.num_classes = {config.model.num_classes}, but data set "
            f"{options.dataset!r} has {len(source.class_names)} classes; set it to that."
        )
    if source[0][1] < 0:
        raise UsageError(
            f"Split {split!r} of data set {options.dataset!r} comes without labels; choose another."
        )
    images = _Images(
        source, pipeline, config.seed, skip_bad=options.bad_images == "skip", replace_bad=training
    )
    return _CachedImages(images, options.num_workers) if options.cache else images


@dataclasses.dataclass
class _Images:
    """The transformed images of one split by index, decoded on demand."""

    source: Source
    pipeline: transforms.Pipeline
    seed: int
    skip_bad: bool  # or stop
    replace_bad: bool  # by the next good one, or leave them black
    bad: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        self.shape = (*_image_size(self.source, self.pipeline), 3)
        views = self.pipeline.num_views
        self._row_shape = (views, *self.shape) if views else self.shape

    def load(self, examples: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[n] indices → images uint8 [n, …], labels int32 [n], whether an image is good [n]."""
        images = np.zeros((len(examples), *self._row_shape), np.uint8)
        labels = np.zeros(len(examples), np.int32)
        good = np.zeros(len(examples), bool)
        for row, example in enumerate(examples.tolist()):
            for candidate in self._candidates(example):
                image, labels[row] = self._read(candidate, epoch)
                if image is not None:
                    images[row], good[row] = image, True
                    break
        return images, labels, good

    def _candidates(self, example: int) -> Iterator[int]:
        yield example
        if self.replace_bad:
            yield from range(example + 1, len(self.source))
            yield from range(example)

    def _read(self, example: int, epoch: int) -> tuple[np.ndarray | None, int]:
        """(transformed image, label) of one example; None in place of a bad image."""
        data, label = self.source[example]
        draws = randomness.uniforms(self.seed, epoch, example, self.pipeline.num_draws)
        try:
            image = self.pipeline.decode(data, draws)
        except BadImageError as error:
            name = self.source.describe(example)
            if not self.skip_bad:
                raise UsageError(
                    f"The image {name} cannot be decoded, {error}; replace it, or set "
                    "config.input.bad_images = 'skip'."
                ) from error
            if name not in self.bad:
                self.bad.add(name)
                found = f"The image {name} cannot be decoded, {error}; it is skipped"
                print(f"{found} ({len(self.bad)} so far).", file=sys.stderr)
            return None, label
        if image.shape != self._row_shape:
            raise UsageError(
                f"The image {self.source.describe(example)} becomes {_by(image.shape[-3:])}, "
                f"others {_by(self.shape)}; add a transform to config.input that fixes the size, "
                f"such as center_crop({min(self.shape[:2])})."
            )
        return image, label


class _CachedImages:
    """The same as `_Images`, from memory: what is fixed is done once, the rest on whole batches."""

    def __init__(self, images: _Images, num_workers: int):
        self.source, self.shape, self.bad = images.source, images.shape, images.bad
        self._seed = images.seed
        fixed, self._rest = images.pipeline.split()
        decoder = dataclasses.replace(images, pipeline=fixed, replace_bad=False)
        self._check_crop(decoder.shape)
        count = len(self.source)
        self._images = np.zeros((count, *decoder.shape), np.uint8)
        self._labels = np.zeros(count, np.int32)
        self._good = np.zeros(count, bool)
        parts = np.array_split(np.arange(count), math.ceil(count / 256))
        loaded = _prefetched(lambda i: decoder.load(parts[i], 0), len(parts), num_workers)
        for part, arrays in zip(parts, loaded, strict=True):
            self._images[part], self._labels[part], self._good[part] = arrays
        self._stand_in = np.arange(count)
        if images.replace_bad and self._good.any():
            good = np.flatnonzero(self._good)
            self._stand_in = good[np.searchsorted(good, self._stand_in) % len(good)]

    def load(self, examples: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        examples = self._stand_in[examples]
        table = randomness.epoch_uniforms(
            self._seed, epoch, len(self._stand_in), self._rest.num_draws
        )
        images = self._rest(self._images[examples], table[examples])
        return images, self._labels[examples], self._good[examples]

    def _check_crop(self, shape: tuple[int, ...]) -> None:
        """Refuses what would not be the same without the cache: crops of JPEGs decoded smaller."""
        first = self._rest.transforms[0] if self._rest.transforms else None
        if not isinstance(first, transforms.Sampling) or not is_jpeg(self.source[0][0]):
            return
        whole = Region(0, 0, *shape[:2], first.output_size(None))
        if reduction(whole) > 1:
            raise UsageError(
                f"config.input.cache would keep images of {_by(shape)} to make crops of "
                f"{_by(whole.size)}; put a resize before the random crop, or set cache to False."
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


def _prefetched(function: Callable, length: int, num_workers: int) -> grain.DatasetIterator:
    """An iterator over function(0), …, function(length − 1), computed ahead by threads in order."""
    ahead = num_workers + 2 if num_workers else 0
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(length).map(function).to_iter_dataset(options))


def _share(key: str, batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"config.{key} = {batch_size} cannot be divided among {process_count} processes; set a "
            f"positive multiple of {process_count}."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size[:2]))
