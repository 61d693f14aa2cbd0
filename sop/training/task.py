"""What a network is trained for, as far as others have to know: classification or detection."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.data import transforms
from sop.data.normalization import make_normalize
from sop.data.sources import open_source
from sop.detection import create_detector
from sop.models import create_model
from sop.models.lookup import is_detector
from sop.training.detection import Detection
from sop.training.evaluation import evaluate
from sop.training.mixing import make_mixing
from sop.training.optimizer import frozen_statistics
from sop.training.stages import EvalData
from sop.training.step import AXIS, Step, make_eval_step, make_train_step, update_options


class Task(Protocol):
    """The parts of a run that depend on what its network puts out.

    Attributes:
      parse_transforms: see `sop.data.transforms.parse`.
      open_split: (dataset, split, data_dir) → its examples, see `sop.data.sources.open_source`.
    """

    parse_transforms: ClassVar[Callable[..., Any]]
    open_split: ClassVar[Callable[[str, str, str | None], Any]]

    @staticmethod
    def image_size(options: ConfigDict) -> tuple[int, int] | None:
        """Height and width of evaluation's images by a config.input; None: not one for all."""

    def noise(self, random: np.random.Generator, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """A batch of training of images of this size, all of it drawn."""

    def train_step(self, tx: optax.GradientTransformation) -> Step:
        """The per-device step of training, whose metrics are scalars with 'loss' among them."""

    def eval_step(self) -> Any:
        """The per-device step of evaluation: (variables, batch) → the same on all devices."""

    def evaluate(
        self, eval_step: Any, mesh: Mesh, variables: Any, batches: Iterable[Any], data: EvalData
    ) -> dict[str, Any]:
        """The scores over all `batches` of `data`; 'count' of examples is one of them.

        Which of them makes a checkpoint or a method the best, and how they are said, is in
        `sop.training.scores`.
        """


class Classification:
    """One label for each image; see `make_train_step` and `make_eval_step`."""

    parse_transforms = staticmethod(transforms.parse)
    open_split = staticmethod(open_source)

    def __init__(self, config: ConfigDict, model: nn.Module):
        self._config, self._model = config, model
        self._normalize = make_normalize(config)

    @staticmethod
    def image_size(options):
        source = open_source(options.dataset, options.eval_split, options.data_dir)
        pipeline = transforms.parse(options.eval_transforms, training=False)
        return pipeline.output_size(source.image_size)

    def noise(self, random, size):
        config = self._config
        shape = (config.batch_size, *size, 3)
        labels = random.integers(0, config.model.num_classes, config.batch_size, np.int32)
        return {"image": random.integers(0, 256, shape, np.uint8), "label": labels}

    def train_step(self, tx: optax.GradientTransformation) -> Step:
        config = self._config
        return make_train_step(
            self._model,
            tx,
            normalize=self._normalize,
            label_smoothing=config.label_smoothing,
            frozen_batch_norm=frozen_statistics(config),
            mixing=make_mixing(config.mixup, config.cutmix),
            **update_options(config),
        )

    def eval_step(self) -> Any:
        return make_eval_step(self._model, normalize=self._normalize)

    def evaluate(self, eval_step, mesh, variables, batches, data):
        return evaluate(eval_step, mesh, variables, batches)


def make_model(config: ConfigDict) -> nn.Module:
    """The network of a whole config, a classifier or a detector, as its steps take it.

    Raises:
      UsageError: see `sop.models.create_model` and `sop.detection.create_detector`.
    """
    options = {
        "dtype": jnp.dtype(config.dtype),
        "axis_name": AXIS if config.sync_batch_norm else None,
        "remat": config.remat,
    }
    if is_detector(config.model):
        return create_detector(config.model, **options)
    axis = AXIS if config.sync_representation else None
    return create_model(config.model, representation_axis=axis, **options)


def make_task(config: ConfigDict, model: nn.Module) -> Task:
    """The task of a stage's config."""
    return task_of(config.model)(config, model)


def task_of(model: Mapping[str, Any]) -> type[Classification] | type[Detection]:
    """That of a config.model: detection where it names a detector."""
    return Detection if is_detector(model) else Classification
