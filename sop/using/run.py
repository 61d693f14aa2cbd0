"""A run loaded from its work folder, to ask it about images."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from sop.config import check, stage_configs
from sop.data.normalization import make_normalize
from sop.errors import UsageError
from sop.models import create_model
from sop.models.lookup import is_detector
from sop.models.network import Network
from sop.training.checkpoints import Checkpoints
from sop.training.exported import is_export, read_export
from sop.training.memory import check_compiled
from sop.training.saved import saved_progress
from sop.training.step import AXIS, data_parallel, make_forward, make_mesh, replicated
from sop.training.workdir import run_config, with_whole_model
from sop.using import layers
from sop.using.images import Batch, Image, Loader, Pictures, given
from sop.using.predictions import Predictions


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = "best",
    changes: Mapping[str, Any] | None = None,
) -> "Run":
    """The run in a work folder, trained here or converted, as `--mode=eval` would evaluate it.

    Or what `python -m sop.export` wrote.

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
    return open_run(workdir, config, str(checkpoint))


def open_run(
    workdir: str | os.PathLike,
    config: ConfigDict,
    checkpoint: str,
    say: Callable[[str], None] = print,
) -> "Run":
    """As `load`, by a checked config of the same model.

    Raises:
      UsageError: as `load`, or processes of other machines take part.
    """
    if is_detector(config.model):
        raise UsageError(
            f"The run in {workdir} is a detector, which gives no classes of whole images: load it "
            "with sop.detection.finding.load_detector, see docs/detection.md."
        )
    if jax.process_count() > 1:
        raise UsageError(
            f"A run is used by one process, not by {jax.process_count()}: leave out --coordinator, "
            "--num_processes and --process_id; all devices of the process take part."
        )
    config = with_whole_model(stage_configs(config)[-1])
    model = create_model(config.model, dtype=jnp.dtype(config.dtype))
    mesh = make_mesh()
    if is_export(workdir):
        variables, facts = read_export(workdir)
        variables = jax.device_put(variables, replicated(mesh))
        found = variables, facts["step"], facts["epoch"], tuple(facts["class_names"])
        return Run(str(workdir), config, model, *found, mesh)
    with _quiet_orbax(), closing(Checkpoints(workdir, read_only=True, say=say)) as checkpoints:
        variables, step, epoch = checkpoints.restore_variables(checkpoint, replicated(mesh))
    data = saved_progress(workdir).get("data")
    names = data[-1]["train"]["classes"] if data else map(str, range(config.model.num_classes))
    return Run(str(workdir), config, model, variables, step, epoch, tuple(names), mesh)


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without its warnings that nothing will be written."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained network with all that it needs to take images.

    Attributes:
      workdir: the work folder.
      config: of its last stage.
      model: called as `model.apply(variables, images, train=False)`, on normalised images.
      variables: of its checkpoint, replicated over the mesh.
      step, epoch: of the checkpoint.
      class_names: as the data set that it was trained on has them; of converted weights numbers.
      mesh: of all devices.
    """

    workdir: str
    config: ConfigDict
    model: Network
    variables: Mapping[str, Any]
    step: int
    epoch: float
    class_names: tuple[str, ...]
    mesh: Mesh

    @property
    def names_are_numbers(self) -> bool:
        """Whether nothing is known of the classes but how many there are."""
        return self.class_names == tuple(map(str, range(len(self.class_names))))

    def __repr__(self) -> str:
        what = f"{self.config.model.backbone}, step {self.step}, {len(self.class_names)} classes"
        return f"<Run {self.workdir}: {what}>"

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

    @functools.cached_property
    def normalize(self) -> Callable[[jax.Array], jax.Array]:
        """uint8 images → what `model` takes."""
        return make_normalize(self.config)

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
