"""The linear maps that the layers share, with PyTorch's initialisations."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sop import ops

# He et al. 2015, eq. 10, with fan-out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for weights and biases, U(−1/√fan_in, 1/√fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _contract(x, kernel, axis):
    """Σ over the last axis of x and the given one of the kernel, summed in at least float32."""
    return lax.dot_general(
        x,
        kernel,
        (((x.ndim - 1,), (axis,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


@jax.custom_jvp
def _matmul(x, kernel):
    return _contract(x, kernel, 0)


@_matmul.defjvp
def _matmul_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    axis = 0
    if kernel.shape[0] > kernel.shape[1]:
        # The transposed tangent has a transposed cotangent, for which XLA multiplies faster on CPU.
        # Without the barrier it would fold the transposition back.
        dkernel, axis = lax.optimization_barrier(dkernel.T), 1
    return _matmul(x, kernel), _contract(dx, kernel, 0) + _contract(x, dkernel, axis)


def convolve(x, kernel, strides, padding, *, lhs_dilation, feature_group_count, **options):
    """`lax.conv_general_dilated` of NHWC and HWIO; on CPU 1×1 ones as products, faster there."""
    pointwise = kernel.shape[:2] == (1, 1) and feature_group_count == 1 and lhs_dilation == (1, 1)
    padded = padding not in ("SAME", "VALID") and np.any(padding)
    if pointwise and not padded and jax.default_backend() == "cpu":
        x = x[:, :: strides[0], :: strides[1]]
        return _matmul(x, kernel[0, 0]).astype(x.dtype)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        feature_group_count=feature_group_count,
        **options,
    )


class PointwiseConv(nn.Module):
    """1×1 convolution, y = x W + b, whose result is float32 whatever the type of its factors.

    Attributes:
      features: C', the width of the output.
      strides: take every strides-th row and column; only for feature maps.
      use_bias: add b, which starts as U(−1/√C, 1/√C).
      kernel_init: of W, [1, 1, C, C']; None: U(−1/√C, 1/√C).
      dtype: of the factors; None: that of x. float16 counts as float32, which sums of products of
        large activations need.

    Call:
      x: [..., C] → [..., C'], float32 (float64 for float64).

    >>> y, _ = PointwiseConv(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, 5)))
    >>> y.shape
    (1, 2, 2, 3)
    """

    features: int
    strides: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] | None = kaiming_normal
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        uniform = torch_uniform(x.shape[-1])
        kernel = self.param(
            "kernel", self.kernel_init or uniform, (1, 1, x.shape[-1], self.features)
        )
        if self.strides > 1:
            x = x[:, :: self.strides, :: self.strides]
        x = ops.widen(x.astype(self.dtype or x.dtype))
        y = _matmul(x, kernel[0, 0].astype(x.dtype))
        return y + self.param("bias", uniform, (self.features,)) if self.use_bias else y


class RowConv(nn.Module):
    """GSoP's row-wise convolution: row i of a matrix meets its own `multiplier` filters.

    Attributes:
      multiplier: m, outputs per row.
      kernel_init: of the kernel, [K, 1, 1, R·m] as the grouped K×1 convolution has it; None:
        U(−1/√K, 1/√K), as the bias.

    Call:
      a: matrices [B, R, K] → [B, R·m].

    >>> y, _ = RowConv().init_with_output(jax.random.key(0), jnp.ones((1, 3, 5)))
    >>> y.shape
    (1, 12)
    """

    multiplier: int = 4
    kernel_init: Callable[..., jax.Array] | None = kaiming_normal

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        rows, columns = a.shape[1:]
        outputs = rows * self.multiplier
        uniform = torch_uniform(columns)
        kernel = self.param("kernel", self.kernel_init or uniform, (columns, 1, 1, outputs))
        bias = self.param("bias", uniform, (outputs,))
        kernel = kernel.reshape(columns, rows, self.multiplier).swapaxes(0, 1)
        return ops.row_convolution(a, kernel, bias.reshape(rows, self.multiplier))
