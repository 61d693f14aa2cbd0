"""The linear maps that the layers share, with PyTorch's initialisations."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sop import ops
from sop.ops.annotations import Array
from sop.ops.platform import multiply

# He et al. 2015, eq. 10, with fan-out.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# Initial kernels of convolutions by name: PyTorch code starts from the first, TensorFlow code from
# Keras' default or, where it asks for VarianceScaling(), from a normal cut off at 2σ, by fan-in.
KERNELS = {
    "he": kaiming_normal,
    "glorot": nn.initializers.glorot_uniform(),
    "lecun": nn.initializers.lecun_normal(),
}


def torch_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for weights and biases, U(−1/√fan_in, 1/√fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(features: int, fan_in: int, **options: Any) -> nn.Dense:
    """y = x W + b as PyTorch's Linear, from its initial values, products with factors as they are.

    Args:
      features, fan_in: widths of y and of x.
      options: of `nn.Dense`, such as `use_bias` and `name`.
    """
    return nn.Dense(
        features,
        kernel_init=torch_uniform(fan_in),
        bias_init=torch_uniform(fan_in),
        precision=jax.lax.Precision.HIGHEST,
        **options,
    )


class PointwiseConv(nn.Module):
    """1×1 convolution, y = x W + b, whose result is float32 whatever the type of its factors.

    Attributes:
      features: C', the width of the output.
      strides: take every strides-th row and column; only for feature maps.
      use_bias: add b.
      kernel_init, bias_init: of W, [1, 1, C, C'], and of b; None: U(−1/√C, 1/√C).
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
    bias_init: Callable[..., jax.Array] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[jax.Array, "... {self.features}"]:
        uniform = torch_uniform(x.shape[-1])
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or uniform, shape, jnp.float32)
        if self.strides > 1:
            x = x[:, :: self.strides, :: self.strides]
        x = ops.widen(x.astype(self.dtype or x.dtype))
        y = multiply(x, kernel[0, 0].astype(x.dtype))
        if not self.use_bias:
            return y
        return y + self.param("bias", self.bias_init or uniform, (self.features,), jnp.float32)


class Projection(nn.Module):
    """y = x W + b of tokens as a transformer's Linear, in float32 whatever the type of its factors.

    Attributes:
      features: C', the width of the output.
      use_bias: add b, zero at first; W is normal with deviation 0.02.
      dtype: of the factors; None: that of x. float16 counts as float32.

    Call:
      x: [..., C] → [..., C'], float32 (float64 for float64).

    >>> y, _ = Projection(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 5), jnp.bfloat16))
    >>> y.shape, y.dtype
    ((1, 2, 3), dtype('float32'))
    """

    features: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[jax.Array, "... {self.features}"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, jnp.float32)
        x = ops.widen(x.astype(self.dtype or x.dtype))
        y = multiply(x, kernel.astype(x.dtype))
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)


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
    def __call__(self, a: Float[Array, "b r k"]) -> Float[jax.Array, "b r*{self.multiplier}"]:
        rows, columns = a.shape[1:]
        outputs = rows * self.multiplier
        uniform = torch_uniform(columns)
        shape = (columns, 1, 1, outputs)
        kernel = self.param("kernel", self.kernel_init or uniform, shape, jnp.float32)
        bias = self.param("bias", uniform, (outputs,), jnp.float32)
        kernel = kernel.reshape(columns, rows, self.multiplier).swapaxes(0, 1)
        return ops.row_convolution(a, kernel, bias.reshape(rows, self.multiplier))
