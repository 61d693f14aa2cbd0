"""Compact global descriptor: attention from products of first-order statistics."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop.layers.arguments import check_call
from sop.layers.published import Published
from sop.ops.annotations import FeatureMap
from sop.ops.cgd import cgd_gate, rescale, spatial_cgd_gate, toy_cgd_gate


def _xavier_column(key, shape, dtype=float):
    """Xavier-uniform of the vector as a C × 1 matrix, U(±√(6/(C+1)))."""
    return nn.initializers.xavier_uniform()(key, (*shape, 1), dtype)[:, 0]


def _vectors(module: nn.Module, size: int, use_bias: bool, prefix: str = ""):
    """Parameters w0, w1, w2 and bias0, bias1, bias2, each [size]; None for no biases."""

    def three(name, init):
        return [module.param(f"{prefix}{name}{i}", init, (size,), jnp.float32) for i in range(3)]

    weights = three("w", _xavier_column)
    return weights, three("bias", nn.initializers.zeros) if use_bias else None


def _gated(module: nn.Module, x: FeatureMap, gate: jax.Array) -> jax.Array:
    """x·(1 + gate); who asks for the collection 'intermediates' is given the gate."""
    module.sow("intermediates", "gate", gate)
    return rescale(x, gate)


class CGD(nn.Module):
    """Compact global descriptor: channels rescaled by interactions of their means and maxima.

    p, m mean and maximum over positions, s = softmax(p) over channels; ψ = tanh(s·(pᵀw₀) + b₀),
    φ = tanh(s·(mᵀw₁) + b₁), g = tanh(ψ·(φᵀw₂) + b₂); y = x·(1 + g).
    He et al., "Compact Global Descriptor for Neural Networks", arXiv 1907.09665, §3.

    Attributes:
      use_bias: have b₀, b₁, b₂ [C], zeros at first; w are Xavier-uniform as C × 1 matrices.
      nonlinear: False leaves ψ and φ without their tanh.
      dtype: compute type of x and y; None: that of x. The descriptor is float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    >>> y, variables = CGD().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape, sum(w.size for w in jax.tree.leaves(variables))
    ((2, 4, 4, 8), 48)
    """

    published: ClassVar = Published(after="conv")

    use_bias: bool = True
    nonlinear: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        weights, biases = _vectors(self, x.shape[-1], self.use_bias)
        x = x.astype(self.dtype or x.dtype)
        return _gated(self, x, cgd_gate(x, weights, biases, self.nonlinear))


class SpatialCGD(nn.Module):
    """The spatial form of CGD: positions rescaled by rows and columns.

    Rows have mean p and maximum m over columns and channels, columns over rows and channels; for
    each, s = softmax(p), ψ and φ as in `CGD`, and a = ψ·(φᵀw₂) + b₂ without tanh;
    y = x·(1 + tanh(a_rows a_columnsᵀ)). The parameters fix height and width.
    He et al., arXiv 1907.09665, §3, and its code.

    Attributes:
      dtype: compute type of x and y; None: that of x. The descriptor is float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 5, 8))
    >>> y, _ = SpatialCGD().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape
    (2, 4, 5, 8)
    """

    published: ClassVar = Published(after="conv")

    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        row_weights, row_biases = _vectors(self, x.shape[1], True, "height_")
        column_weights, column_biases = _vectors(self, x.shape[2], True, "width_")
        x = x.astype(self.dtype or x.dtype)
        gate = spatial_cgd_gate(x, row_weights, column_weights, row_biases, column_biases)
        return _gated(self, x, gate)


class ToyCGD(nn.Module):
    """The toy form of CGD, y = x·(1 + tanh(p pᵀw)) with p the mean over positions.

    He et al., arXiv 1907.09665, §3, and its code.

    Attributes:
      dtype: compute type of x and y; None: that of x. The descriptor is float32.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    >>> y, _ = ToyCGD().init_with_output(jax.random.key(1), x, train=False)
    >>> y.shape
    (2, 4, 4, 8)
    """

    published: ClassVar = Published(after="conv")

    dtype: Any = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        weight = self.param("w", _xavier_column, (x.shape[-1],), jnp.float32)
        x = x.astype(self.dtype or x.dtype)
        return _gated(self, x, toy_cgd_gate(x, weight))
