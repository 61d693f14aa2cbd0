"""Detection as a task of the loop: the losses of a batch, and average precision over a split."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.data.annotated import open_annotated
from sop.data.normalization import make_normalize
from sop.data.scenes import parse_scenes
from sop.detection import learned_mask_size
from sop.detection.metric import Found, average_precision
from sop.errors import UsageError
from sop.training.evaluation import refuse_no_example, results
from sop.training.optimizer import frozen_statistics
from sop.training.stages import EvalData
from sop.training.step import AXIS, Step, frozen_batch_norms, make_update, update_options


class Detection:
    """Boxes of the objects in an image.

    A batch of training is {'image': uint8 [b, H, W, 3], 'size': float32 [b, 2], height and width of
    what is not padding, 'boxes': float32 [b, N, 4], 'labels': int32 [b, N], 'valid', 'crowd': bool
    [b, N], perhaps 'masks': uint8 [b, N, M, M]}, one of evaluation {'image', 'size', 'index': int32
    [b], 'mask': bool [b]}: an example's place in the split, and whether it counts.
    """

    parse_transforms = staticmethod(parse_scenes)
    open_split = staticmethod(open_annotated)

    def __init__(self, config: ConfigDict, model: nn.Module):
        self._config, self._model = config, model
        self._normalize = make_normalize(config)

    @staticmethod
    def image_size(options: ConfigDict) -> tuple[int, int] | None:
        """None where `resize_pad` gives images one of two sizes."""
        return parse_scenes(options.eval_transforms, training=False).output_size(None)

    def noise(self, random: np.random.Generator, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """With as many objects as `config.input.max_objects` allows."""
        config = self._config
        rows = config.batch_size, config.input.max_objects
        limits = np.float32(size[::-1])
        corners = np.sort(random.random((*rows, 2, 2), np.float32), axis=2) * limits
        batch = {
            "image": random.integers(0, 256, (rows[0], *size, 3), np.uint8),
            "size": np.tile(np.float32(size), (rows[0], 1)),
            "boxes": corners.reshape(*rows, 4),
            "labels": random.integers(0, config.model.num_classes, rows, np.int32),
            "valid": np.ones(rows, bool),
            "crowd": np.zeros(rows, bool),
        }
        if side := learned_mask_size(config.model):
            batch["masks"] = np.full((*rows, side, side), 255, np.uint8)
        return batch

    def train_step(self, tx: optax.GradientTransformation) -> Step:
        """The detector's losses are metrics by their names, 'loss' is their sum."""
        frozen = frozen_statistics(self._config)

        def loss(params, model_state, batch, key, shared_key):
            targets = {name: x for name, x in batch.items() if name not in ("image", "size")}
            streams = zip(("dropout", "sampling"), jax.random.split(key), strict=True)
            with frozen_batch_norms(frozen):
                losses, new_model_state = self._model.apply(
                    {"params": params, **model_state},
                    self._images(batch),
                    targets,
                    train=True,
                    sizes=batch["size"],
                    mutable=["batch_stats"],
                    rngs=dict(streams),
                )
            total = sum(losses.values())
            return total, (new_model_state, {"loss": total, **losses})

        return make_update(loss, tx, **update_options(self._config))

    def forward(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The detections in 'image', cut off at 'size'; in pixels of the images as they came in."""
        images = self._images(batch)
        return self._model.apply(variables, images, train=False, sizes=batch["size"])

    def _images(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Normalised, and zero where there is padding."""
        images = self._normalize(batch["image"])
        rows, columns = (
            jnp.arange(n) < batch["size"][:, axis, None] for axis, n in enumerate(images.shape[1:3])
        )
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(inside, images, jnp.zeros((), images.dtype))

    def eval_step(self) -> Any:
        """(variables, batch) → the detections with 'index', 'size' and 'mask', of all devices."""

        def step(variables, batch):
            facts = {name: batch[name] for name in ("index", "size", "mask")}
            said = {**self.forward(variables, batch), **facts}
            # Every process has all of them: so every example counts once, on however many.
            return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), said)

        return step

    def evaluate(
        self, eval_step: Any, mesh: Mesh, variables: Any, batches: Iterable[Any], data: EvalData
    ) -> dict[str, Any]:
        """See `sop.detection.metric.average_precision`."""
        found: dict[int, Found] = {}
        for said in results(eval_step, mesh, variables, batches):
            for row in np.flatnonzero(said["mask"]):
                one = {name: np.asarray(x[row]) for name, x in said.items()}
                found[int(one["index"])] = data.found(one)
        if not found:
            refuse_no_example()
        truths = {index: data.truth(index) for index in found}
        scores = average_precision(truths, found, data.class_names)
        if scores["AP"] is None:
            raise UsageError(
                f"Split {data.identity['split']!r} has no object that counts: choose another "
                "config.input.eval_split."
            )
        return scores
