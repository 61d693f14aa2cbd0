"""What a run loaded from its work folder is, whatever it was trained for."""

import abc
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.config import stage_configs
from sop.data.normalization import make_normalize
from sop.detection import create_network
from sop.errors import UsageError
from sop.training.checkpoints import Checkpoints
from sop.training.exported import is_export, read_export
from sop.training.saved import saved_progress
from sop.training.step import replicated
from sop.training.workdir import with_whole_model


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded(abc.ABC):
    """A trained network with all that it needs to take images.

    Attributes:
      workdir: the work folder.
      config: of its last stage.
      model: called as `model.apply(variables, images, train=False)`, on normalised images.
      variables: of its checkpoint, replicated over the mesh.
      step, epoch: of the checkpoint.
      class_names: as the data set that it was trained on has them; of converted weights numbers.
      mesh: of the devices that it uses.
    """

    workdir: str
    config: ConfigDict
    model: nn.Module
    variables: Mapping[str, Any]
    step: int
    epoch: float
    class_names: tuple[str, ...]
    mesh: Mesh

    @classmethod
    def open(
        cls,
        workdir: str | os.PathLike,
        config: ConfigDict,
        checkpoint: str,
        mesh: Mesh,
        say: Callable[[str], None],
    ) -> Self:
        """What a work folder, or `python -m sop.export`, left; by a checked config of its model.

        Raises:
          UsageError: there is no such checkpoint, or processes of other machines take part.
        """
        if jax.process_count() > 1:
            raise UsageError(
                f"A run is used by one process, not by {jax.process_count()}: leave out "
                "--coordinator, --num_processes and --process_id; all devices of the process take "
                "part."
            )
        config = with_whole_model(stage_configs(config)[-1])
        model = create_network(config.model, dtype=jnp.dtype(config.dtype))
        if is_export(workdir):
            variables, facts = read_export(workdir)
            variables = jax.device_put(variables, replicated(mesh))
            found = variables, facts["step"], facts["epoch"], tuple(facts["class_names"])
            return cls(str(workdir), config, model, *found, mesh)
        with _quiet_orbax(), closing(Checkpoints(workdir, read_only=True, say=say)) as checkpoints:
            variables, step, epoch = checkpoints.restore_variables(checkpoint, replicated(mesh))
        data = saved_progress(workdir).get("data")
        names = data[-1]["train"]["classes"] if data else map(str, range(config.model.num_classes))
        return cls(str(workdir), config, model, variables, step, epoch, tuple(names), mesh)

    def __repr__(self) -> str:
        what = f"{self.config.model.backbone}, step {self.step}, {len(self.class_names)} classes"
        return f"<{type(self).__name__} {self.workdir}: {what}>"

    @property
    def names_are_numbers(self) -> bool:
        """Whether nothing is known of the classes but how many there are."""
        return self.class_names == tuple(map(str, range(len(self.class_names))))

    @abc.abstractmethod
    def arguments(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the exported program takes of transformed images, uint8 [n, H, W, 3]."""

    @abc.abstractmethod
    def compute(self, variables: Any, *arguments: jax.Array) -> Any:
        """What that program computes, to be traced: a tree of arrays with n rows."""

    @abc.abstractmethod
    def answers(self, *arguments: np.ndarray) -> Any:
        """The same of the run itself."""

    @functools.cached_property
    def normalize(self) -> Callable[[jax.Array], jax.Array]:
        """uint8 images → what `model` takes."""
        return make_normalize(self.config)


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without its warnings that nothing will be written."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
