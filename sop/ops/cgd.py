"""Compact global descriptors: channel, spatial and toy attention."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop.errors import UsageError
from sop.ops.annotations import Array, FeatureMap
from sop.ops.arguments import require_feature_map
from sop.ops.means import first_maximum
from sop.ops.precision import at_least_float32, einsum, narrow


def _dot(values, weight):
    """[B, C] · [C] → [B, 1]."""
    return einsum("bc,c->b", values, weight)[:, None]


def _descriptor(total, count, peak, weights, biases, inner_tanh):
    """The three second-order steps up to, but without, the last tanh: [B, C].

    `total` / `count` is the mean. The maximum is subtracted before dividing: XLA may fuse
    total·(1/count) − maximum into one rounding, which for means of 1e9 gives +64, not 0.
    """
    b0, b1, b2 = (0.0, 0.0, 0.0) if biases is None else biases
    inner = jnp.tanh if inner_tanh else lambda a: a
    top = lax.stop_gradient(total.max(axis=1, keepdims=True))
    s = jax.nn.softmax((total - top) / count, axis=1)
    psi = inner(s * _dot(total / count, weights[0]) + b0)
    phi = inner(s * _dot(peak, weights[1]) + b1)
    return psi * _dot(phi, weights[2]) + b2


def rescale(x: FeatureMap, gate: jax.Array) -> Float[jax.Array, "b h w c"]:
    """x (1 + gate) in float32, given back in the dtype of x; the gate of any shape that fits."""
    return narrow(at_least_float32(x) * (1 + gate), x.dtype)


def _require_vectors(name, vectors, size, count=3):
    if vectors is None:
        return
    if len(vectors) != count or any(v.shape != (size,) for v in vectors):
        shapes = [v.shape for v in vectors]
        raise UsageError(f"{name} have shapes {shapes}: give {count} vectors of {size}.")


def cgd(
    x: FeatureMap,
    weights: Sequence[Float[Array, " c"]],
    biases: Sequence[Float[Array, " c"]] | None = None,
    inner_tanh: bool = True,
) -> Float[jax.Array, "b h w c"]:
    """Channel attention of the compact global descriptor.

    With mean p and maximum m over positions and s = softmax(p) over channels,
    ψ = tanh(s (pᵀw₀) + b₀), φ = tanh(s (mᵀw₁) + b₁), g = tanh(ψ (φᵀw₂) + b₂); y = x (1 + g).
    Where several positions have the maximum, its gradient goes to the first, row by row.
    He et al., "Compact Global Descriptor for Neural Networks", 2019, section 3.

    Args:
      x: features [B, H, W, C], any floating dtype.
      weights: w₀, w₁, w₂, each [C].
      biases: b₀, b₁, b₂, each [C], or None for none.
      inner_tanh: False leaves ψ and φ linear.

    Returns:
      [B, H, W, C] in the dtype of x; computed in float32.

    Raises:
      UsageError: x is not a floating [B, H, W, C], or a weight or bias is not [C].

    >>> import jax.numpy as jnp
    >>> cgd(jnp.ones((1, 2, 2, 3)), [jnp.zeros(3)] * 3)[0, 0, 0].tolist()
    [1.0, 1.0, 1.0]
    """
    return rescale(x, cgd_gate(x, weights, biases, inner_tanh))


def cgd_gate(
    x: FeatureMap,
    weights: Sequence[Float[Array, " c"]],
    biases: Sequence[Float[Array, " c"]] | None = None,
    inner_tanh: bool = True,
) -> Float[jax.Array, "b 1 1 c"]:
    """The g of `cgd`, float32; arguments and errors as there."""
    require_feature_map(x)
    _require_vectors("weights", weights, x.shape[3])
    _require_vectors("biases", biases, x.shape[3])
    wide = at_least_float32(x)
    total, peak = wide.sum(axis=(1, 2)), first_maximum(wide, (1, 2))
    count = x.shape[1] * x.shape[2]
    gate = jnp.tanh(_descriptor(total, count, peak, weights, biases, inner_tanh))
    return gate[:, None, None, :]


def spatial_cgd(
    x: FeatureMap,
    row_weights: Sequence[Float[Array, " h"]],
    column_weights: Sequence[Float[Array, " w"]],
    row_biases: Sequence[Float[Array, " h"]] | None = None,
    column_biases: Sequence[Float[Array, " w"]] | None = None,
) -> Float[jax.Array, "b h w c"]:
    """Spatial attention of the compact global descriptor: the same idea on rows and columns.

    Mean and maximum over channels and over the other axis describe rows and columns; ψ and φ as in
    `cgd`, a = ψ (φᵀw₂) + b₂ without tanh for each; g = tanh(a_row a_columnᵀ); y = x (1 + g).

    Args:
      x: features [B, H, W, C], any floating dtype.
      row_weights, row_biases: three [H] each.
      column_weights, column_biases: three [W] each. Biases may be None.

    Returns:
      [B, H, W, C] in the dtype of x; computed in float32.

    Raises:
      UsageError: x is not a floating [B, H, W, C], or a weight or bias has another size.

    >>> import jax.numpy as jnp
    >>> spatial_cgd(jnp.ones((1, 2, 2, 1)), [jnp.zeros(2)] * 3, [jnp.zeros(2)] * 3).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    gate = spatial_cgd_gate(x, row_weights, column_weights, row_biases, column_biases)
    return rescale(x, gate)


def spatial_cgd_gate(
    x: FeatureMap,
    row_weights: Sequence[Float[Array, " h"]],
    column_weights: Sequence[Float[Array, " w"]],
    row_biases: Sequence[Float[Array, " h"]] | None = None,
    column_biases: Sequence[Float[Array, " w"]] | None = None,
) -> Float[jax.Array, "b h w 1"]:
    """The g of `spatial_cgd`, float32; arguments and errors as there."""
    require_feature_map(x)
    _require_vectors("row_weights", row_weights, x.shape[1])
    _require_vectors("row_biases", row_biases, x.shape[1])
    _require_vectors("column_weights", column_weights, x.shape[2])
    _require_vectors("column_biases", column_biases, x.shape[2])
    wide = at_least_float32(x)
    total, peak = wide.sum(axis=3), first_maximum(wide, (3,))
    _, height, width, channels = x.shape
    rows = _descriptor(
        total.sum(axis=2),
        width * channels,
        first_maximum(peak, (2,)),
        row_weights,
        row_biases,
        True,
    )
    columns = _descriptor(
        total.sum(axis=1),
        height * channels,
        first_maximum(peak, (1,)),
        column_weights,
        column_biases,
        True,
    )
    return jnp.tanh(rows[:, :, None] * columns[:, None, :])[..., None]


def toy_cgd(x: FeatureMap, weight: Float[Array, " c"]) -> Float[jax.Array, "b h w c"]:
    """The toy form of the compact global descriptor, y = x (1 + tanh(p pᵀw)), p the mean.

    Args:
      x: features [B, H, W, C], any floating dtype.
      weight: w, [C].

    Returns:
      [B, H, W, C] in the dtype of x; computed in float32.

    Raises:
      UsageError: x is not a floating [B, H, W, C], or weight is not [C].

    >>> import jax.numpy as jnp
    >>> toy_cgd(jnp.ones((1, 1, 1, 2)), jnp.zeros(2)).ravel().tolist()
    [1.0, 1.0]
    """
    return rescale(x, toy_cgd_gate(x, weight))


def toy_cgd_gate(x: FeatureMap, weight: Float[Array, " c"]) -> Float[jax.Array, "b 1 1 c"]:
    """The gate of `toy_cgd`, tanh(p pᵀw), float32; arguments and errors as there."""
    require_feature_map(x)
    _require_vectors("weight", [weight], x.shape[3], 1)
    mean = at_least_float32(x).mean(axis=(1, 2))
    return jnp.tanh(mean * _dot(mean, weight))[:, None, None, :]
