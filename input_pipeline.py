"""An experiment's config → batches for training and for evaluation.

Both are functions of the config alone: which examples a batch holds, in which order and with which
random pixels, depends neither on the number of workers nor on that of processes, and any batch can
be made without those before it: its number is all that has to be known to go on. Grain runs them
ahead of the training loop in threads (OpenCV and NumPy release the interpreter's lock).
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NoReturn

import cv2
import grain
import numpy as np
from ml_collections import ConfigDict

from sop.data import images as codec
from sop.data import randomness, transforms
from sop.data.annotated import open_annotated
from sop.data.images import BadImageError, Region, image_size, is_jpeg, reduction
from sop.data.masks import decode_mask, paste
from sop.data.normalization import check_normalization
from sop.data.objects import Annotated, Objects
from sop.data.scenes import Scene, ScenePipeline, kept, parse_scenes
from sop.data.source import Source
from sop.data.sources import Unturned, open_source
from sop.detection.metric import Found
from sop.errors import UsageError
from sop.models.lookup import entry
from sop.progress import shown

Batch = dict[str, np.ndarray]
_NUM_PROBED = 1000  # images whose sizes are compared where no transform fixes the size


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
            parse = parse_scenes if _detector(config) else transforms.parse
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
    kind = SceneEvaluation if _detector(config) else Evaluation
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
      rows: Shape and type of each array of a batch, for one example, without 'mask'.
      batches_ahead: How many are in memory at once.
      bad_images: The names of the undecodable images that this process has met so far.
    """

    def __init__(self, images: "_Images", batch_size: int, rows: slice, num_workers: int):
        self.num_examples = len(images.source)
        self.class_names = images.source.class_names
        self.num_classes = len(self.class_names)
        self.image_shape, self.row_shape = images.shape, images.row_shape
        self.rows = images.rows
        self.identity = images.source.identity
        self.batches_ahead = _ahead(num_workers) + 1
        self.bad_images = images.bad
        self._images, self._batch_size, self._rows = images, batch_size, rows
        self._num_workers = num_workers

    def _places(self, number: int) -> np.ndarray:
        """This process's places in batch `number`, counted from the first example."""
        start = number * self._batch_size
        return np.arange(start, start + self._batch_size)[self._rows]


class Train(_Batches):
    """Endless batches {'image': uint8 [b, H, W, 3], 'label': int32 [b]}, b = B / processes.

    Each epoch shows an example at most once, in an order that depends on (seed, epoch) alone; what
    does not fill a batch is left out. An example's augmentation depends on (seed, epoch, its index)
    alone.

    Attributes:
      steps_per_epoch: num_examples // B.
    """

    def __init__(
        self, images: "_Images", batch_size: int, rows: slice, num_workers: int, seed: int
    ):
        super().__init__(images, batch_size, rows, num_workers)
        self.steps_per_epoch = self.num_examples // batch_size
        self._seed = seed

    def batches(self, start: int = 0, first_epoch: int = 0) -> Iterator[Batch]:
        """Batch number `start` and those that follow; batch 0 begins epoch `first_epoch`."""
        self._images.prepare(self._num_workers)

        def batch(number: int) -> Batch:
            epoch, place = divmod(number, self.steps_per_epoch)
            epoch += first_epoch
            # Not Grain's shuffle: an index costs it 14 μs with 2,048 examples, 200 μs with 128.
            order = randomness.order(self._seed, epoch, self.num_examples)
            examples = self._images.load(order[self._places(place)], epoch)
            return {name: array for name, array in examples.items() if name != "mask"}

        return _prefetch(batch, start, sys.maxsize, self._num_workers)


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
        self._images.prepare(self._num_workers)
        return _prefetch(self._batch, 0, self.num_batches, self._num_workers)

    def _batch(self, number: int) -> Batch:
        places = self._places(number)
        real = places[places < self.num_examples]
        batch = self._images.load(real, epoch=0)
        missing = len(places) - len(real)
        return {k: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()}


class SceneEvaluation(Evaluation):
    """Evaluation of detection: batches {'image', 'index', 'size', 'mask'}, see `_Scenes`."""

    _images: "_Scenes"

    def truth(self, index: int) -> tuple[tuple[int, int], Objects]:
        """Height and width of the original image `index`, and what it holds."""
        return self._images.source.truth(index)

    def found(self, said: dict[str, np.ndarray]) -> Found:
        """A detector's row for an image, in pixels of the original image.

        Args:
          said: 'boxes' [K, 4], 'scores', 'labels', 'valid' [K] and perhaps 'masks' [K, M, M], in
            pixels of the image 'index' as it came out of the transforms, 'size' of it not padding.
        """
        return to_original(said, self.truth(int(said["index"]))[0])


def _detector(config: ConfigDict) -> str | None:
    return entry(config.model, "detector")[0]


def _open(config: ConfigDict, training: bool, opened: dict[Any, Any]) -> "_Images":
    """The images of the training or the evaluation split, after all that can be refused cheaply."""
    options = config.input
    text = options.train_transforms if training else options.eval_transforms
    split = options.train_split if training else options.eval_split
    detector = _detector(config)
    pipeline = (parse_scenes if detector else transforms.parse)(text, training=training)
    check_normalization(options.normalization)
    skip_bad = options.bad_images == "skip"
    key = (options.dataset, options.data_dir, split, pipeline, config.seed, skip_bad, training)
    key = (*key, options.cache, options.exif, options.max_objects, detector)
    if key not in opened:
        source = (open_annotated if detector else open_source)(
            options.dataset, split, options.data_dir
        )
        source = Unturned(source) if options.exif == "ignore" else source
        how = {"seed": config.seed, "skip_bad": skip_bad, "replace_bad": training}
        if detector:
            images = _scenes(config, source, pipeline, how)
        else:
            images = _Images(source, pipeline, **how)
        opened[key] = _CachedImages(images) if options.cache else images
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


@dataclasses.dataclass
class _Images:
    """The transformed images of one split by index, decoded on demand."""

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
        self.rows = {"image": (self.row_shape, np.uint8), "label": ((), np.int32)}

    def prepare(self, num_workers: int) -> None:
        """To be called before `load`."""

    def load(self, examples: np.ndarray, epoch: int) -> Batch:
        """[n] indices → 'image' uint8 [n, …], 'label' int32 [n], 'mask' [n]: is the image good?"""
        batch = {
            name: np.zeros((len(examples), *shape), dtype)
            for name, (shape, dtype) in {**self.rows, "mask": ((), bool)}.items()
        }
        for row, example in enumerate(examples.tolist()):
            for candidate in self._candidates(example):
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


def _scenes(
    config: ConfigDict, source: Annotated, pipeline: ScenePipeline, how: dict[str, Any]
) -> "_Scenes":
    if config.input.cache:
        raise UsageError(
            "config.input.cache keeps images for classification alone: set it to False."
        )
    with_masks = _detector(config) == "mask_rcnn"
    if with_masks and not source.has_masks:
        raise UsageError(
            f"Data set {config.input.dataset!r} has no masks for the detector 'mask_rcnn': give "
            "'segmentation' to every annotation, or set config.model.detector.name='faster_rcnn'."
        )
    return _Scenes(source, pipeline, **how, capacity=config.input.max_objects, masks=with_masks)


@dataclasses.dataclass
class _Scenes(_Images):
    """The transformed images of one split with their objects.

    Rows for training are {'image': uint8 [H, W, 3], 'boxes': float32 [N, 4] in pixels of it,
    'labels': int32 [N], 'valid', 'crowd': bool [N], with masks 'masks': uint8 [N, H, W]}, N =
    `capacity`; difficult objects are left out. For evaluation they are {'image', 'index': int32,
    the example, 'size': float32 [2], height and width of what is not padding}.
    """

    source: Annotated
    pipeline: ScenePipeline
    capacity: int = 0
    masks: bool = False
    _crowded: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self):
        sizes = self.pipeline.sizes()
        if len(sizes) > 1:
            raise UsageError(
                "resize_pad gives images of two sizes, which cannot be in one batch yet: let "
                "config.input.train_transforms and config.input.eval_transforms end in resize."
            )
        self.shape = (*sizes[0], 3)
        self.row_shape = self.shape
        self.rows = {"image": (self.shape, np.uint8)}
        if not self.replace_bad:  # evaluation
            self.rows |= {"index": ((), np.int32), "size": ((2,), np.float32)}
            return
        count = self.capacity
        self.rows |= {"boxes": ((count, 4), np.float32), "labels": ((count,), np.int32)}
        self.rows |= {"valid": ((count,), bool), "crowd": ((count,), bool)}
        if self.masks:
            self.rows["masks"] = ((count, *self.shape[:2]), np.uint8)

    def _made(
        self, example: int, data: bytes, objects: Objects, draws: np.ndarray
    ) -> dict[str, Any]:
        self.check(data)
        image = codec.decode(data)
        masks = None
        if self.replace_bad:
            objects = kept(objects, ~objects.difficult)
            if self.masks:
                each = [decode_mask(rle) for rle in objects.masks]
                masks = np.stack(each) if each else np.zeros((0, *image.shape[:2]), np.uint8)
        scene = self.pipeline(Scene(image, objects, masks, image.shape[:2]), draws)
        if not self.replace_bad:
            return {"image": scene.image, "index": example, "size": scene.size}
        return {"image": scene.image, **self._padded(example, scene)}

    def _padded(self, example: int, scene: Scene) -> dict[str, np.ndarray]:
        """The objects, filled up to `capacity`."""
        if len(scene.objects) > self.capacity and example not in self._crowded:
            self._crowded.add(example)
            print(
                f"The image {self.source.describe(example)} has {len(scene.objects)} objects, more "
                f"than config.input.max_objects: the first {self.capacity} are taken "
                f"({len(self._crowded)} such images so far).",
                file=sys.stderr,
            )
        scene = scene.kept(np.arange(len(scene.objects)) < self.capacity)
        objects, count = scene.objects, len(scene.objects)
        arrays = {"boxes": objects.boxes, "labels": objects.labels, "crowd": objects.crowd}
        arrays["valid"] = np.ones(count, bool)
        if self.masks:
            arrays["masks"] = scene.masks
        missing = self.capacity - count
        return {k: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for k, x in arrays.items()}


def to_original(said: dict[str, np.ndarray], size: tuple[int, int]) -> Found:
    """A detector's row for a transformed image → what it found in the original one.

    Args:
      said: 'boxes' [K, 4], 'scores', 'labels', 'valid' [K], perhaps 'masks' [K, M, M], and 'size'
        [2], height and width of what is not padding.
      size: height and width of the original.
    """
    rows = np.flatnonzero(said["valid"])
    (height, width), (inner_height, inner_width) = size, said["size"].tolist()
    scale = np.array([width / inner_width, height / inner_height] * 2)
    boxes = (said["boxes"][rows] * scale).clip(0, [width, height, width, height])
    masks = paste(said["masks"][rows], boxes, size) if "masks" in said else None
    return Found(boxes, said["scores"][rows], said["labels"][rows], masks)


class _CachedImages:
    """The same as `_Images`, from memory: what is fixed is done once, the rest on whole batches."""

    def __init__(self, images: _Images):
        self.source, self.shape, self.bad = images.source, images.shape, images.bad
        self.row_shape, self.rows = images.row_shape, images.rows
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

        loaded = zip(parts, _prefetch(load, 0, len(parts), num_workers), strict=True)
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

    def load(self, examples: np.ndarray, epoch: int) -> Batch:
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


def _prefetch(function: Callable, start: int, stop: int, num_workers: int) -> Iterator:
    """function(start), …, function(stop − 1), computed ahead by threads, in order."""
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's would compete with them
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=_ahead(num_workers))
    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(function).to_iter_dataset(options))


def _ahead(num_workers: int) -> int:
    """How many batches are made before they are asked for."""
    return num_workers + 2 if num_workers else 0


def _share(key: str, batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that one process holds."""
    if batch_size % process_count:
        raise UsageError(
            f"config.{key} = {batch_size} cannot be divided among {process_count} processes; set a "
            f"multiple of {process_count}."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size[:2]))
