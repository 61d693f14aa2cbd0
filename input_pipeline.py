"""An experiment's config → batches for training and for evaluation.

Both are functions of the config alone: which examples a batch holds, in which order and with which
random pixels, depends neither on the number of workers nor on that of processes, and any batch can
be made without those before it. Grain runs them ahead of the training loop in threads (OpenCV
and NumPy release the interpreter's lock) and keeps the position, which is all that has to be saved.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np
from grain.experimental import index_shuffle
from ml_collections import ConfigDict

from sop.data import randomness, transforms
from sop.data.images import BadImageError, image_size
from sop.data.normalization import check_normalization
from sop.data.sources import Source, open_source
from sop.errors import UsageError

Batch = dict[str, np.ndarray]
_NUM_PROBED = 1000  # images whose sizes are compared where no transform fixes the size


def create_train(config: ConfigDict, process_index: int = 0, process_count: int = 1) -> "Train":
    """Batches for training, shuffled anew each epoch; see `Train`.

    Process p of P gets rows [p·B/P, (p+1)·B/P) of each global batch of B = config.batch_size.

    Raises:
      UsageError: The config does not fit the data.
    """
    return Train(config, process_index, process_count)


def create_eval(config: ConfigDict, process_index: int = 0, process_count: int = 1) -> "Evaluation":
    """Batches for evaluation, every example once over all processes; see `Evaluation`.

    Raises:
      UsageError: The config does not fit the data.
    """
    return Evaluation(config, process_index, process_count)


class Train:
    """Endless batches {'image': uint8 [b, H, W, 3], 'label': int32 [b]}, b = batch_size / P.

    Epoch e = step // steps_per_epoch shows each example at most once, in an order that depends on
    (seed, e) alone; what does not fill a batch is left out. An example's augmentation depends on
    (seed, e, its index) alone.

    Attributes:
      num_examples, num_classes, class_names: Of the split.
      steps_per_epoch: num_examples // config.batch_size.
      image_shape: Of one transformed image.
      bad_images: Descriptions of the undecodable images met so far.
    """

    def __init__(self, config: ConfigDict, process_index: int, process_count: int):
        rows = _share("batch_size", config.batch_size, process_index, process_count)
        self._images = _open(config, training=True)
        self.num_examples = len(self._images.source)
        self.class_names = self._images.source.class_names
        self.num_classes = len(self.class_names)
        self.image_shape = self._images.shape
        self.bad_images = self._images.bad
        self.steps_per_epoch = self.num_examples // config.batch_size
        if not self.steps_per_epoch:
            raise UsageError(
                f"config.batch_size = {config.batch_size} exceeds the {self.num_examples} examples "
                f"of split {config.input.train_split!r}; set a smaller one."
            )
        self._seed, self._batch_size, self._rows = config.seed, config.batch_size, rows
        self._num_workers = config.input.num_workers

    def iterator(self, start_step: int = 0) -> grain.DatasetIterator:
        """An iterator whose next batch is that of `start_step`.

        Its `get_state()` and `set_state()` handle a dict with the number of the next step.
        """
        iterator = _prefetched(self._batch, sys.maxsize, self._num_workers)
        iterator.set_state({"next_index": start_step})
        return iterator

    def _batch(self, step: int) -> Batch:
        epoch, step = divmod(step, self.steps_per_epoch)
        seed, last = randomness.shuffle_seed(self._seed, epoch), self.num_examples - 1
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)[self._rows]
        examples = np.array(
            [index_shuffle(at, max_index=last, seed=seed, rounds=4) for at in positions]
        )
        images, labels, _ = self._images.load(examples, epoch)
        return {"image": images, "label": labels}


class Evaluation:
    """Batches {'image': uint8 [b, (V,) H, W, 3], 'label': int32 [b], 'mask': bool [b]}.

    All have the same size b = config.eval_batch_size / processes and every process gets the same
    number of them. Mask is False for rows that only fill up the last batch and for undecodable
    images. Each `iter` starts again and gives the same.

    Attributes:
      num_examples, num_classes, class_names: Of the split.
      num_batches: Of one iteration.
      image_shape: Of one transformed image, without views.
      bad_images: Descriptions of the undecodable images met so far.
    """

    def __init__(self, config: ConfigDict, process_index: int, process_count: int):
        rows = _share("eval_batch_size", config.eval_batch_size, process_index, process_count)
        self._images = _open(config, training=False)
        self.num_examples = len(self._images.source)
        self.class_names = self._images.source.class_names
        self.num_classes = len(self.class_names)
        self.image_shape = self._images.shape
        self.bad_images = self._images.bad
        self.num_batches = math.ceil(self.num_examples / config.eval_batch_size)
        self._batch_size, self._rows = config.eval_batch_size, rows
        self._num_workers = config.input.num_workers

    def __iter__(self) -> Iterator[Batch]:
        return _prefetched(self._batch, self.num_batches, self._num_workers)

    def _batch(self, number: int) -> Batch:
        start = number * self._batch_size
        positions = np.arange(start, start + self._batch_size)[self._rows]
        real = positions < self.num_examples
        images, labels, good = self._images.load(positions[real], epoch=0)
        padding = len(positions) - len(images)
        return {
            "image": np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)]),
            "label": np.concatenate([labels, np.zeros(padding, np.int32)]),
            "mask": np.concatenate([good, np.zeros(padding, bool)]),
        }


def _open(config: ConfigDict, training: bool) -> "_Images":
    """Everything that can be refused is refused here, before any image but a few is read."""
    options = config.input
    split = options.train_split if training else options.eval_split
    text = options.train_transforms if training else options.eval_transforms
    pipeline = transforms.parse(text, training=training)
    check_normalization(options.normalization)
    if options.bad_images not in ("stop", "skip"):
        raise UsageError(
            f"config.input.bad_images = {options.bad_images!r} is unknown; set 'stop' or 'skip'."
        )
    source = open_source(options.dataset, split, options.data_dir)
    if config.model.num_classes != len(source.class_names):
        raise UsageError(
            f"config.model.num_classes = {config.model.num_classes}, but data set "
            f"{options.dataset!r} has {len(source.class_names)} classes; set it to that."
        )
    shape = (*_image_size(source, pipeline), 3)
    images = _Images(
        source,
        pipeline,
        shape,
        seed=config.seed,
        skip_bad=options.bad_images == "skip",
        replace_bad=training,
    )
    return _CachedImages(images, options.num_workers) if options.cache else images


class _Images:
    """The transformed images of one split by index, decoded on demand."""

    def __init__(
        self,
        source: Source,
        pipeline: transforms.Pipeline,
        shape: tuple[int, int, int],
        *,
        seed: int,
        skip_bad: bool,
        replace_bad: bool,
    ):
        self.source, self.pipeline, self.shape, self.seed = source, pipeline, shape, seed
        self.skip_bad, self.replace_bad = skip_bad, replace_bad
        self.bad: set[str] = set()

    @property
    def row_shape(self) -> tuple[int, ...]:
        views = self.pipeline.num_views
        return (views, *self.shape) if views else self.shape

    def load(self, examples: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[n] indices → images uint8 [n, …], labels int32 [n], whether each is good, bool [n].

        A bad image is replaced by the next good one of the split if `replace_bad`, else black.
        """
        images = np.zeros((len(examples), *self.row_shape), np.uint8)
        labels = np.zeros(len(examples), np.int32)
        good = np.ones(len(examples), bool)
        for row, example in enumerate(examples.tolist()):
            image, labels[row] = self.read(example, epoch)
            tries = 1
            while image is None and self.replace_bad and tries < len(self.source):
                image, labels[row] = self.read((example + tries) % len(self.source), epoch)
                tries += 1
            good[row] = image is not None
            if image is not None:
                images[row] = image
        return images, labels, good

    def read(self, example: int, epoch: int) -> tuple[np.ndarray | None, int]:
        """(transformed image, label) of one example; None in place of a bad image if skipped."""
        data, label = self.source[example]
        draws = randomness.uniforms(self.seed, epoch, example, self.pipeline.num_draws)
        try:
            image = self.pipeline.decode(data, draws)
        except BadImageError as error:
            name = self.source.describe(example)
            if not self.skip_bad:
                raise UsageError(
                    f"The image {name} cannot be decoded ({error}); replace it, or set "
                    "config.input.bad_images = 'skip'."
                ) from error
            self.bad.add(name)
            return None, label
        if image.shape != self.row_shape:
            raise UsageError(
                f"The image {self.source.describe(example)} becomes {_by(image.shape[-3:])}, "
                f"others {_by(self.shape)}; end config.input's transforms with one that fixes the "
                f"size, such as center_crop({min(self.shape[:2])})."
            )
        return image, label


class _CachedImages:
    """The same as `_Images`, from memory: what is fixed is done once, the rest on whole batches."""

    def __init__(self, images: _Images, num_workers: int):
        self._fixed, self._rest = images.pipeline.split()
        self.source, self.shape, self.bad, self._seed = (
            images.source,
            images.shape,
            images.bad,
            images.seed,
        )
        count = len(images.source)
        size = _image_size(images.source, self._fixed)
        decoder = _Images(
            images.source,
            self._fixed,
            (*size, 3),
            seed=images.seed,
            skip_bad=images.skip_bad,
            replace_bad=False,
        )
        decoder.bad = images.bad
        chunks = np.array_split(np.arange(count), -(-count // 256))
        parts = list(_prefetched(lambda at: decoder.load(chunks[at], 0), len(chunks), num_workers))
        self._images, self._labels, self._good = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        self._stand_in = np.arange(count)
        if images.replace_bad and self._good.any():
            following = np.flatnonzero(self._good)
            place = np.searchsorted(following, self._stand_in) % len(following)
            self._stand_in = following[place]

    def load(self, examples: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        examples = self._stand_in[examples]
        draws = randomness.epoch_uniforms(
            self._seed, epoch, len(self._stand_in), self._rest.num_draws
        )[examples]
        images = self._rest(self._images[examples], draws)
        return images, self._labels[examples], self._good[examples]


def _image_size(source: Source, pipeline: transforms.Pipeline) -> tuple[int, int]:
    """(height, width) of the transformed images, from the headers of some where need be."""
    size = pipeline.output_size(source.image_size)
    if size is not None:
        return size
    found = {}
    for example in np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(int)).tolist():
        with contextlib.suppress(BadImageError):
            full = image_size(source[example][0])
            found.setdefault(pipeline.output_size(full), source.describe(example))
    if len(found) == 1:
        return next(iter(found))
    if not found:
        raise UsageError(
            f"None of the images as {source.describe(0)} can be decoded; replace them."
        )
    (size, name), (other_size, other) = list(found.items())[:2]
    raise UsageError(
        f"The images become {_by(size)} ({name}) and {_by(other_size)} ({other}); end "
        "config.input's transforms with one that fixes the size, such as center_crop(224)."
    )


def _prefetched(function: Callable, length: int, num_workers: int) -> grain.DatasetIterator:
    """An iterator over function(0), …, function(length − 1), computed ahead by threads in order."""
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=2 * num_workers)
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
