"""An experiment's config → batches for training and for evaluation.

Both are functions of the config alone: which examples a batch holds, in which order and with which
random pixels, depends neither on the number of workers nor on that of processes, and any batch can
be made without those before it: its number is all that has to be known to go on. Grain runs them
ahead of the training loop in threads (OpenCV and NumPy release the interpreter's lock).
"""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sop.data import randomness, transforms
from sop.data.annotated import open_annotated
from sop.data.examples import (
    Batch,
    CachedImages,
    Images,
    ahead,
    filled,
    in_batches,
    prefetch,
)
from sop.data.images import BadImageError
from sop.data.normalization import check_normalization
from sop.data.objects import Objects
from sop.data.scene_examples import Scenes, to_original
from sop.data.scenes import parse_scenes
from sop.data.source import Source
from sop.data.sources import Unturned, open_source
from sop.detection import learned_mask_size
from sop.detection.metric import Found
from sop.errors import UsageError
from sop.models.lookup import entry, is_detector


def create(
    configs: Sequence[ConfigDict], process_index: int = 0, process_count: int = 1
) -> list[tuple["Train", "Evaluation"]]:
    """The data of successive stages; those that have the same images share them, cache included.

    Nothing is decoded before the first batch is asked for.

    Raises:
      UsageError: A config does not fit its data.
    """
    for config in configs:
        if config.input.test_transforms is not None:
            parse = parse_scenes if is_detector(config.model) else transforms.parse
            parse(config.input.test_transforms, training=False, name="test_transforms")
    share, opened = (process_index, process_count), {}
    return [(create_train(c, *share, opened), create_eval(c, *share, opened)) for c in configs]


def create_train(
    config: ConfigDict,
    process_index: int = 0,
    process_count: int = 1,
    opened: dict[Any, Any] | None = None,
) -> "Train":
    """Batches for training. Process p of P gets rows [p·B/P, (p+1)·B/P) of each batch of B.

    Args:
      opened: Images to share with other calls, by what they were opened with; added to.
    Raises:
      UsageError: The config does not fit the data.
    """
    rows = _share("batch_size", config.batch_size, process_index, process_count)
    images = _open(config, True, {} if opened is None else opened)
    if config.batch_size > len(images.source):
        raise UsageError(
            f"config.batch_size = {config.batch_size} exceeds the {len(images.source)} examples of "
            f"split {config.input.train_split!r}; set a smaller one."
        )
    return Train(images, config.batch_size, rows, config.input.num_workers, config.seed)


def create_eval(
    config: ConfigDict,
    process_index: int = 0,
    process_count: int = 1,
    opened: dict[Any, Any] | None = None,
) -> "Evaluation":
    """Batches for evaluation, of which each process gets its rows as in training.

    Args:
      opened: See `create_train`.
    Raises:
      UsageError: The config does not fit the data.
    """
    rows = _share("eval_batch_size", config.eval_batch_size, process_index, process_count)
    images = _open(config, False, {} if opened is None else opened)
    kind = SceneEvaluation if is_detector(config.model) else Evaluation
    return kind(images, config.eval_batch_size, rows, config.input.num_workers)


def cached_bytes(data: Iterable["_Batches"]) -> int:
    """Bytes of images that are kept in memory for these batches, once they were all made."""
    return sum({id(each._images): each._images.num_bytes for each in data}.values())


class _Batches:
    """What training and evaluation have in common.

    Attributes:
      num_examples, class_names, num_classes: Of the split.
      image_shape: (H, W, 3) of one transformed image, without test-time views.
      identity: What tells these examples from others, JSON-able: split, their number, the names of
        the classes, a hash of the files' names and sizes.
      row_shape: ([V,] H, W, 3) of what one becomes in a batch.
      buckets: Shape and type of each array of a batch, for one example, by name; of each size that
        images have.
      batches_ahead: How many are in memory at once.
      bad_images: The names of the undecodable images that this process has met so far.
    """

    def __init__(self, images: Images, batch_size: int, rows: slice, num_workers: int):
        self.num_examples = len(images.source)
        self.class_names = images.source.class_names
        self.num_classes = len(self.class_names)
        self.image_shape, self.row_shape = images.shape, images.row_shape
        self.buckets = images.buckets
        self.identity = images.source.identity
        self.batches_ahead = ahead(num_workers) + 1
        self.bad_images = images.bad
        self._images, self._batch_size, self._rows = images, batch_size, rows
        self._num_workers = num_workers

    def _load(self, examples: np.ndarray, epoch: int) -> Batch:
        """This process's rows of a batch of examples."""
        groups = self._images.groups
        bucket = 0 if groups is None else int(groups[examples[0]])
        return self._images.load(examples[self._rows], epoch, bucket)


class Train(_Batches):
    """Endless batches {'image': uint8 [b, H, W, 3], 'label': int32 [b]}, b = B / processes.

    Each epoch shows an example at most once, in an order that depends on (seed, epoch) alone; what
    does not fill a batch is left out. Images of several sizes make batches of one size each, which
    come in a random order. An example's augmentation depends on (seed, epoch, its index) alone.

    Attributes:
      steps_per_epoch: num_examples // B, of each size of images.
    """

    def __init__(self, images: Images, batch_size: int, rows: slice, num_workers: int, seed: int):
        super().__init__(images, batch_size, rows, num_workers)
        groups = images.groups
        counts = [self.num_examples] if groups is None else np.bincount(groups).tolist()
        self.steps_per_epoch = sum(count // batch_size for count in counts)
        if not self.steps_per_epoch:
            raise UsageError(
                f"config.batch_size = {batch_size} exceeds the number of images of each of the "
                "sizes that config.input.train_transforms gives them; set a smaller one."
            )
        self._seed = seed
        self._batches_of = functools.lru_cache(maxsize=2)(self._epoch)

    def batches(self, start: int = 0, first_epoch: int = 0) -> Iterator[Batch]:
        """Batch number `start` and those that follow; batch 0 begins epoch `first_epoch`."""
        self._images.prepare(self._num_workers)

        def batch(number: int) -> Batch:
            epoch, place = divmod(number, self.steps_per_epoch)
            epoch += first_epoch
            examples = self._load(self._examples(epoch, place), epoch)
            return {name: array for name, array in examples.items() if name != "mask"}

        return prefetch(batch, start, sys.maxsize, self._num_workers)

    def _examples(self, epoch: int, place: int) -> np.ndarray:
        """Those of the batch at a place in an epoch."""
        if self._images.groups is not None:
            return self._batches_of(epoch)[place]
        # Not Grain's shuffle: an index costs it 14 μs with 2,048 examples, 200 μs with 128.
        start, stop = place * self._batch_size, (place + 1) * self._batch_size
        return randomness.ordered(self._seed, epoch, self.num_examples, start, stop)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch where images have several sizes."""
        order = randomness.order(self._seed, epoch, self.num_examples)
        batches = in_batches(order, self._images.groups, self._batch_size, whole=True)
        return [batches[i] for i in randomness.order(self._seed, epoch, len(batches))]


class Evaluation(_Batches):
    """Batches {'image': uint8 [b, (V,) H, W, 3], 'label': int32 [b], 'mask': bool [b]}.

    Over all processes every example comes once. All batches have the same size b = B / processes
    and every process gets the same number of them; 'mask' is False in the rows that fill up the
    last batch, and for undecodable images. Each `iter` starts again and gives the same.

    Attributes:
      num_batches: Of one iteration.
    """

    def __init__(self, images: Images, batch_size: int, rows: slice, num_workers: int):
        super().__init__(images, batch_size, rows, num_workers)
        self.buckets = [{**rows, "mask": ((), np.bool_)} for rows in images.buckets]
        examples = np.arange(self.num_examples)
        self._batches = in_batches(examples, images.groups, batch_size, whole=False)
        self.num_batches = len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self._images.prepare(self._num_workers)
        return prefetch(self._batch, 0, self.num_batches, self._num_workers)

    def _batch(self, number: int) -> Batch:
        count = self._rows.stop - self._rows.start
        return filled(self._load(self._batches[number], epoch=0), count)


class SceneEvaluation(Evaluation):
    """Evaluation of detection: batches {'image', 'index', 'size', 'mask'}, see `Scenes`."""

    _images: Scenes

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        """Height and width of the original image `index`, and what it holds."""
        return self._images.source.truth(index)

    def found(self, said: dict[str, np.ndarray]) -> Found:
        """A detector's row for an image, in pixels of the original image.

        Args:
          said: 'boxes' [K, 4], 'scores', 'labels', 'valid' [K] and perhaps 'masks' [K, M, M], in
            pixels of the image 'index' as it came out of the transforms, 'size' of it not padding.
        """
        return to_original(said, self._images.source.size(int(said["index"])))


def _open(config: ConfigDict, training: bool, opened: dict[Any, Any]) -> Images:
    """The images of the training or the evaluation split, after all that can be refused cheaply."""
    options = config.input
    text = options.train_transforms if training else options.eval_transforms
    split = options.train_split if training else options.eval_split
    detector = is_detector(config.model)
    pipeline = (parse_scenes if detector else transforms.parse)(text, training=training)
    check_normalization(options.normalization)
    skip_bad = options.bad_images == "skip"
    key = (options.dataset, options.data_dir, split, pipeline, config.seed, skip_bad, training)
    key = (*key, options.cache, options.exif, options.max_objects, detector)
    if key not in opened:
        source = (open_annotated if detector else open_source)(
            options.dataset, split, options.data_dir
        )
        if detector and learned_mask_size(config.model) and not source.has_masks:
            culprit = getattr(source, "maskless", None)
            where = f"{culprit} has no segmentation" if culprit else "it has no masks"
            raise UsageError(
                f"Data set {options.dataset!r} cannot be used: {where}, which "
                f"config.model.detector.name = {entry(config.model, 'detector')[0]!r} learns. "
                "Choose 'faster_rcnn', or other data."
            )
        source = Unturned(source) if options.exif == "ignore" else source
        how = {"seed": config.seed, "skip_bad": skip_bad, "replace_bad": training}
        if detector:
            if options.cache:
                raise UsageError(
                    "config.input.cache keeps images for classification alone: set it to False."
                )
            mask_size = learned_mask_size(config.model) if training else None
            images = Scenes(
                source, pipeline, **how, capacity=options.max_objects, mask_size=mask_size
            )
        else:
            images = Images(source, pipeline, **how)
        opened[key] = CachedImages(images) if options.cache else images
    source = opened[key].source
    if config.model.num_classes != len(source.class_names):
        raise UsageError(
            f"config.model.num_classes = {config.model.num_classes}, but data set "
            f"{options.dataset!r} has {len(source.class_names)} classes; set it to that."
        )
    if not detector and not _has_labels(source):
        raise UsageError(
            f"Split {split!r} of data set {options.dataset!r} comes without labels; choose another."
        )
    return opened[key]


def _has_labels(source: Source) -> bool:
    try:
        return source[0][1] >= 0
    except BadImageError:  # of a folder
        return True


def _share(key: str, batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch_size % process_count:
        raise UsageError(
            f"config.{key} = {batch_size} cannot be divided among {process_count} processes; set a "
            f"multiple of {process_count}."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
