"""What a training run carries from step to step."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

_AVERAGED = ("params", "batch_stats")


class TrainState(struct.PyTreeNode):
    """A pytree; every leaf is replicated over the mesh.

    Attributes:
      step: int32 scalar, optimizer steps taken since the run began.
      params: trainable float32 parameters.
      model_state: the other variable collections by name ('batch_stats', 'constants', …).
      opt_state: state of the optax transformation.
      ema: exponential moving averages of `params` and of batch norm's statistics, {'params': …,
        'batch_stats': …}; None: none are taken.
    """

    step: jax.Array
    params: Any
    model_state: Mapping[str, Any]
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `module.apply` takes."""
        return {"params": self.params, **self.model_state}

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """The same with the averages of `ema`."""
        return {**self.variables, **self.ema}


def init_variables(model: nn.Module, seed: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Initial variables of `model` for images of shape `[H, W, C]`; the same for equal seeds."""
    key = jax.random.key(seed)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return dict(model.init(key, images, train=False))


def init_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """The state before the first step, with averages or without."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    averaged = {name: value for name, value in variables.items() if name in _AVERAGED}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        model_state=model_state,
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, averaged) if ema else None,
    )
