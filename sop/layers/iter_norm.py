"""Iterative normalisation: batch norm that decorrelates channels as well."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop import ops
from sop.checks import Count, above, at_least, at_most
from sop.layers.arguments import check_call
from sop.ops.annotations import FeatureMap
from sop.ops.arguments import Iterations
from sop.ops.covariance import second_moment


class IterNorm(nn.Module):
    """Iterative normalisation, y = γ Σ^(−½) (x − μ) + β: decorrelated batch norm by iteration.

    Channels are taken in groups of d successive ones; μ and Σ = (1/m) Σᵢ (xᵢ − μ)(xᵢ − μ)ᵀ + εI are
    each group's over the m = B·H·W positions of the batch, and Σ^(−½) is the N-th Newton–Schulz
    iterate of Σ/tr Σ, over √(tr Σ). In training running means of μ and of Σ^(−½) follow,
    r ← (1 − m) r + m·s; otherwise they take their place. γ and β are those of a batch norm.
    Huang et al., "Iterative Normalization: Beyond Standardization towards Efficient Whitening",
    CVPR 2019, §3.

    Parameters are `scale` γ and `bias` β, the collection 'batch_stats' holds `mean`, [C], and
    `whitening`, [C/d, d, d]; all float32.

    Attributes:
      group_size: d, halved until it divides C; None: C.
      num_iters: N.
      momentum: m.
      epsilon: ε.
      scale_init: of γ.
      axis_name: mapped axis over whose devices statistics are taken; each must hold equally many
        values. None: of each device alone.
      dtype: of y; None: that of x. Statistics are at least float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether statistics are the batch's, and the
      running ones follow.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map, or a field does not fit its annotation.

    >>> x = jax.random.normal(jax.random.key(0), (8, 4, 4, 6))
    >>> y, _ = IterNorm(num_iters=12).init_with_output(jax.random.key(0), x, train=True)
    >>> covariance = ops.covariance(y.reshape(1, 8, 16, 6))
    >>> bool(jnp.allclose(covariance, jnp.eye(6), atol=1e-3))
    True
    """

    torch_names: ClassVar = ((r"/whitening$", ".running_wm"),)

    group_size: Count | None = None
    num_iters: Iterations = 5
    momentum: Annotated[float, at_least(0), at_most(1)] = 0.1
    epsilon: Annotated[float, above(0)] = 1e-5
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        channels = x.shape[3]
        size = self._size(channels)
        groups = channels // size
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        whitening = self.variable("batch_stats", "whitening", _identities, groups, size)
        dtype = self.dtype or x.dtype
        x = ops.at_least_float32(x.astype(dtype))
        # Groups in front: else each product of theirs would move them there and back.
        rows = jnp.swapaxes(x.reshape(-1, groups, size), 0, 1)
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            rows, matrices, *statistics = self._statistics(rows, axis_name)
            if not self.is_initializing():
                for running, new in zip((mean, whitening), statistics, strict=True):
                    change = self.momentum * (new - running.value)
                    running.value = running.value + change.astype(running.value.dtype)
        else:
            rows, matrices = rows - mean.value.reshape(groups, 1, size), whitening.value
        y = ops.einsum("gmc,gcd->gmd", rows, matrices * scale.reshape(groups, 1, size))
        return ops.narrow(jnp.swapaxes(y, 0, 1).reshape(x.shape) + bias, dtype)

    def _size(self, channels):
        size = min(self.group_size or channels, channels)
        while channels % size:
            size //= 2
        return size

    def _statistics(self, rows, axis_name):
        """R = (rows − μ)/s [g, m, d], what whitens R, μ [C] and Σ^(−½) [g, d, d].

        s, a power of two for each group, keeps Σ in range.
        """

        def average(a):
            return a if axis_name is None else lax.pmean(a, axis_name)

        # From near the mean, so that a constant has a variance of exactly zero.
        origin = average(lax.stop_gradient(rows[:, :1]))
        rows = rows - origin
        mean = average(rows.mean(axis=1, keepdims=True))
        rows = rows - mean
        largest = lax.stop_gradient(jnp.abs(rows).max(axis=(1, 2), keepdims=True))
        if axis_name is not None:
            largest = lax.pmax(largest, axis_name)
        size = ops.magnitude(largest, (1, 2))
        rows = rows / size
        moments = average(second_moment(rows) / rows.shape[1])
        identity = jnp.eye(rows.shape[2], dtype=rows.dtype)
        sigma = moments + self.epsilon / size / size * identity
        matrices = ops.matrix_inverse_sqrt(sigma, self.num_iters)
        return rows, matrices, (origin + mean).reshape(-1), matrices / size


def _identities(groups: int, size: int) -> Float[jax.Array, "g d d"]:
    return jnp.tile(jnp.eye(size, dtype=jnp.float32), (groups, 1, 1))
