"""Feature pyramid network: maps of one width, each knowing of the coarser ones."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sop.models.network import Conv


class FPN(nn.Module):
    """A pyramid of semantic maps (Lin et al., CVPR 2017, section 3).

    From the coarsest stage C_L down, with 1×1 convolutions a and 3×3 convolutions b, all of one
    width and with biases, and ↑ the nearest neighbour at the finer map's size,

        M_l = a_l(C_l) + ↑M_{l+1},   P_l = b_l(M_l),

    and P_{L+1} is every second position of P_L.

    Attributes:
      width: channels of the maps.
      dtype: of the convolutions and of the maps.

    Call:
      stages: [B, H_l, W_l, C_l], finest first, each about half as large as the one before.

    Returns:
      the maps P, finest first, one more than there are stages.
    """

    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> list[jax.Array]:
        conv = partial(
            Conv,
            self.width,
            use_bias=True,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
        )
        laterals = [conv((1, 1), name=f"lateral{i}")(x) for i, x in enumerate(stages)]
        merged = [laterals[-1]]
        for x in reversed(laterals[:-1]):
            merged.insert(0, x + _enlarged(merged[0], x.shape[1:3]))
        maps = [conv((3, 3), padding=1, name=f"output{i}")(x) for i, x in enumerate(merged)]
        return [*maps, maps[-1][:, ::2, ::2]]


def _enlarged(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """The nearest of the coarser positions at each of the finer ones."""
    for axis, wanted in enumerate(size, 1):
        repeats = -(-wanted // x.shape[axis])
        x = jax.lax.slice_in_dim(jnp.repeat(x, repeats, axis), 0, wanted, axis=axis)
    return x
