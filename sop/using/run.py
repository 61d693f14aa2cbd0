"""A run loaded from its work folder, to ask it about images."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from sop.config import check
from sop.errors import UsageError
from sop.models.lookup import is_detector
from sop.models.network import Network
from sop.training.memory import check_compiled
from sop.training.step import AXIS, data_parallel, make_forward, make_mesh
from sop.training.workdir import run_config
from sop.using import layers
from sop.using.detector import Detector, open_detector
from sop.using.images import Batch, Image, Loader, Pictures, given
from sop.using.loaded import Loaded
from sop.using.predictions import Predictions


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = "best",
    changes: Mapping[str, Any] | None = None,
) -> "Run | Detector":
    """The run in a work folder, trained here or converted, as `--mode=eval` would evaluate it.

    Or what `python -m sop.export` wrote. Of a detector it is a `sop.using.Detector`.

    Its checkpoint is compared with its checksums; a damaged one is said, and the one before taken.

    Args:
      workdir: the folder.
      checkpoint: 'best', 'latest' or a step; 'best/ema': the moving average there.
      changes: dotted keys of its config → other values, as {'eval_batch_size': 32}.
    Raises:
      UsageError: there is no run or no such checkpoint, or a key cannot be changed so.

    >>> run = load("runs/digits")  # doctest: +SKIP
    >>> run.predict("seven.png").names  # doctest: +SKIP
    ['7']
    """
    config = run_config(workdir)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(dict(changes or {}))
    check(config)
    open_it = open_detector if is_detector(config.model) else open_run
    return open_it(workdir, config, str(checkpoint))


def open_run(
    workdir: str | os.PathLike,
    config: ConfigDict,
    checkpoint: str,
    say: Callable[[str], None] = print,
) -> "Run":
    """As `load`, by a checked config of the same model.

    Raises:
      UsageError: as `load`, or the run is a detector.
    """
    if is_detector(config.model):
        raise UsageError(
            f"The run in {workdir} is a detector, which gives no classes of whole images: "
            "--mode=predict draws the objects that it finds."
        )
    return Run.open(workdir, config, checkpoint, make_mesh(), say)


@dataclasses.dataclass(frozen=True, repr=False)
class Run(Loaded):
    """A trained classifier, see `Loaded`; it uses all devices."""

    model: Network

    def predict(self, images: Image | Sequence[Image]) -> Predictions:
        """What the network says of images, after the run's own evaluation transforms.

        With as many images in a batch as `--mode=eval` takes, the logits are those that it sees, to
        the last bit; up to rounding where there are fewer than `config.eval_batch_size`.

        Args:
          images: a path; uint8 [H, W, 3] or [N, H, W, 3]; or a sequence of paths and uint8
            [H, W, 3], of any sizes that the transforms make equal.
        Raises:
          UsageError: an image cannot be decoded, or is none.
        """
        pictures = given(images)
        logits = []
        for batch in self.batches(pictures):
            _refuse_bad(pictures, batch)
            logits.append(self.logits(batch.images))
        return Predictions(np.concatenate(logits), self.class_names)

    def features(self, images: Image | Sequence[Image], at: str = "representation") -> np.ndarray:
        """What a layer puts out for images.

        Args:
          images: as of `predict`.
          at: a layer's path, 'features/' left out or not, such as 'layer3_0/conv1'; a stage,
            'layer3', stands for its last block.
        Returns:
          [N, …] in the type that the network computes in; with test-time views [N, V, …].
        Raises:
          UsageError: as of `predict`, or there is no such layer.
        """
        pictures = given(images)
        found: list[np.ndarray] = []
        for batch in self.batches(pictures):
            _refuse_bad(pictures, batch)
            path = layers.find(at, self.layers(batch.images.shape[-3:]))
            found.append(self.by_device(self._features(path), batch.images))
        return np.concatenate(found)

    def layers(self, image_shape: tuple[int, ...]) -> dict[str, tuple[type, Any]]:
        """See `sop.using.layers.trace`, for images [H, W, 3] as they come out of the transforms."""
        return self._layers(tuple(image_shape))

    def batches(self, pictures: Pictures) -> Iterator[Batch]:
        """Batches of pictures as `logits` takes them; see `sop.using.images.Batch`."""
        return Loader.of(self.config).batches(pictures, self.config.eval_batch_size)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Of at most `eval_batch_size` transformed images, uint8 [n, (V,) H, W, 3] → [n, K].

        Raises:
          UsageError: a device cannot hold so many.
        """
        self._compile((self._padded(len(images)), *images.shape[1:]))
        return self.by_device(self._forward, images)

    def arguments(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        return (images,)

    def compute(self, variables: Any, *arguments: jax.Array) -> jax.Array:
        """Logits, float32 [n, K]."""
        logits: Any = self.model.apply(variables, self.normalize(arguments[0]), train=False)
        return logits.astype(jnp.float32)

    def answers(self, *arguments: np.ndarray) -> np.ndarray:
        return self.logits(*arguments)

    @functools.cached_property
    def _forward(self) -> Callable:
        step = make_forward(self.model, normalize=self.normalize)
        return data_parallel(step, self.mesh, by_example=True)

    @functools.cached_property
    def _compile(self) -> Callable[[tuple[int, ...]], None]:
        def check(shape: tuple[int, ...]) -> None:
            sharding = NamedSharding(self.mesh, P(AXIS))
            images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
            arguments = self.variables, images
            check_compiled("eval_batch_size", shape[0], self._forward, arguments, self.mesh)

        return functools.cache(check)

    @functools.cached_property
    def _features(self) -> Callable[[str], Callable]:
        def make(path: str) -> Callable:
            def step(variables, images):
                views = images.shape[1:-3]
                flat = self.normalize(images.reshape(-1, *images.shape[-3:]))
                value = layers.outputs(self.model, variables, flat, [path])[path]
                return value.reshape(-1, *views, *value.shape[1:])

            return data_parallel(step, self.mesh, by_example=True)

        return functools.cache(make)

    @functools.cached_property
    def _layers(self) -> Callable[[tuple[int, ...]], dict[str, tuple[type, Any]]]:
        return functools.cache(functools.partial(layers.trace, self.model, self.variables))

    def by_device(self, step: Callable, batch: Any) -> Any:
        """A step's results for a batch that is filled up so that the devices share it.

        Args:
          step: (variables, batch) → results, see `sop.training.step.data_parallel`.
          batch: a tree of arrays with n rows each, and so are the results.
        """
        count = len(jax.tree.leaves(batch)[0])
        missing = self._padded(count) - count
        full = jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), batch)
        on_devices = jax.device_put(full, NamedSharding(self.mesh, P(AXIS)))
        return jax.tree.map(lambda x: np.asarray(x)[:count], step(self.variables, on_devices))

    def _padded(self, count: int) -> int:
        """The size of evaluation's batches; for few images, devices times a power of two.

        So a single image does not wait for a whole batch, and few sizes are compiled.
        """
        devices, whole = self.mesh.size, self.config.eval_batch_size
        size = devices
        while size < count:
            size *= 2
        return size if 2 * size <= whole else -(-whole // devices) * devices


def _refuse_bad(pictures: Pictures, batch: Batch) -> None:
    for row, reason in batch.bad.items():
        raise UsageError(
            f"The image {pictures.describe(batch.first + row)} cannot be decoded, {reason}: leave "
            "it out."
        )
