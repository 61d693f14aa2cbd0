"""What a training run carries from step to step."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """A pytree; every leaf is replicated over the mesh.

    Attributes:
      step: int32 scalar, optimizer steps taken since the run began.
      params: trainable float32 parameters.
      model_state: the other variable collections by name ('batch_stats', 'constants', …).
      opt_state: state of the optax transformation.
    """

    step: jax.Array
    params: Any
    model_state: Mapping[str, Any]
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `module.apply` takes."""
        return {"params": self.params, **self.model_state}


def init_variables(model: nn.Module, seed: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Initial variables of `model` for images of shape `[H, W, C]`; the same for equal seeds."""
    key = jax.random.key(seed)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return dict(model.init(key, images, train=False))


def init_state(variables: Mapping[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params))
