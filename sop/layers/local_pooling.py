"""Local pooling: what takes the place of a network's max-pools and strided convolutions."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from sop import ops
from sop.checks import Count, NotNegative, within
from sop.layers.arguments import check_call
from sop.layers.linear import PointwiseConv, kaiming_normal
from sop.layers.norm import BatchNorm
from sop.ops.annotations import Array, FeatureMap

Pair = Count | tuple[Count, Count]
_Padding = NotNegative | tuple[NotNegative, NotNegative]


class LocalPool(nn.Module):
    """What every local pooling has: fields with the meaning, and outputs of the size, of PyTorch's.

    Attributes:
      window: height and width of the window, or one number for both.
      strides: likewise; None: the window.
      padding: likewise, added on each side; at most half of the window.
      ceil_mode: round the number of windows up; the last must start inside image + left padding.
      dtype: compute type of x and y; None: that of x.
    """

    window: Pair = 2
    strides: Pair | None = None
    padding: _Padding = 0
    ceil_mode: bool = False
    dtype: Any = None

    def geometry(self) -> dict[str, Any]:
        """The window as arguments of `sop.ops.max_entropy_pool`."""
        strides = self.window if self.strides is None else self.strides
        return {
            "window": _pair(self.window),
            "strides": _pair(strides),
            "padding": _pair(self.padding),
            "ceil_mode": self.ceil_mode,
        }

    def explicit_padding(self, x: Array) -> tuple[tuple[int, int], ...]:
        """Rows and columns to add before and after; rows left over at the end need no removal."""
        _, pads = ops.pool_padding(x.shape[1:3], **self.geometry())
        return tuple((before, max(after, 0)) for before, after in pads)

    def reduce(self, x: Array, start: float, operation) -> jax.Array:
        """`operation` over each window of x padded with `start`."""
        window, strides = _pair(self.window), self.geometry()["strides"]
        pads = ((0, 0), *self.explicit_padding(x), (0, 0))
        first = np.asarray(start, x.dtype)
        return lax.reduce_window(x, first, operation, (1, *window, 1), (1, *strides, 1), pads)


def _pair(value: Pair | _Padding) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


class MaxPool(LocalPool):
    """Maximum pooling, y = max of the window; padding never takes part.

    Attributes as in `LocalPool`.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H', W', C] in `dtype`.

    Raises:
      UsageError: x is no feature map or the window does not fit.

    >>> y, _ = MaxPool(3, 2, 1).init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 2)), False)
    >>> y.shape
    (1, 4, 4, 2)
    """

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b _ _ c"]:
        check_call(self, x)
        return ops.max_pool(x.astype(self.dtype or x.dtype), **self.geometry())


class AveragePool(LocalPool):
    """Average pooling, y = mean of the window, summed in float32.

    Attributes as in `LocalPool`, and:
      count_include_pad: let zeros of the padding take part in the mean, as PyTorch does by default.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H', W', C] in `dtype`.

    Raises:
      UsageError: x is no feature map or the window does not fit.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> y, _ = AveragePool(2).init_with_output(jax.random.key(0), x, train=False)
    >>> y.ravel()
    Array([1.5], dtype=float32)
    """

    count_include_pad: bool = True

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b _ _ c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.widen(x.astype(dtype))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        total = self.reduce(x, 0.0, lax.add)
        return ops.narrow(total / self._counts(x.shape[1:3], total.shape[1:3]), dtype)

    def _counts(self, size, windows):
        """[H', W', 1] positions in each window; what ceil mode adds beyond the padding is none."""
        geometry = self.geometry()
        counts = []
        for axis in range(2):
            window, padding = geometry["window"][axis], geometry["padding"][axis]
            first = np.arange(windows[axis]) * geometry["strides"][axis] - padding
            margin = padding if self.count_include_pad else 0
            last = np.minimum(first + window, size[axis] + margin)
            counts.append(last - np.maximum(first, -margin))
        return np.multiply.outer(*counts)[..., None].astype(np.float32)


class SkipPool(LocalPool):
    """ "Skip" pooling: a learned strided convolution C → C over the window, without bias.

    Attributes as in `LocalPool`, and:
      kernel_init: of the kernel, [h, w, C, C].

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H', W', C] in `dtype`.

    Raises:
      UsageError: x is no feature map or the window does not fit.

    >>> y, _ = SkipPool(3, 2, 1).init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 2)), False)
    >>> y.shape
    (1, 4, 4, 2)
    """

    kernel_init: Callable[..., jax.Array] = kaiming_normal

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b _ _ c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.widen(x.astype(dtype))
        geometry = self.geometry()
        y = nn.Conv(
            x.shape[-1],
            geometry["window"],
            geometry["strides"],
            self.explicit_padding(x),
            use_bias=False,
            dtype=x.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return ops.narrow(y, dtype)


class NoPool(LocalPool):
    """y = x: nothing is pooled, as where GFGP's VGG is told to 'skip'.

    Attributes as in `LocalPool`, without effect but for `dtype`.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H, W, C] in `dtype`.

    Raises:
      UsageError: x is no feature map.

    >>> y, _ = NoPool().init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 2)), False)
    >>> y.shape
    (1, 7, 7, 2)
    """

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b h w c"]:
        check_call(self, x)
        return x.astype(self.dtype or x.dtype)


class MaxEntropyPool(LocalPool):
    """Maximum-entropy pooling, y = Σᵢ wᵢxᵢ, w = softmax(λx) over the window.

    λ → 0 is average, λ → ∞ maximum pooling; padding never takes part. Here λ is a number, or a
    parameter that starts as this number; `GFGP` makes it from the features.
    Kobayashi, "Global Feature Guided Local Pooling", ICCV 2019.

    Attributes as in `LocalPool`, and:
      lam: λ, at least 0.
      learned: 'constant' makes λ one parameter, 'channel' one for each channel; None: fixed.

    Call:
      x: [B, H, W, C], any floating dtype; train: without effect.

    Returns:
      [B, H', W', C] in `dtype`; weights are float32.

    Raises:
      UsageError: x is no feature map, the window does not fit or `learned` is unknown.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> y, _ = MaxEntropyPool(2, lam=0.0).init_with_output(jax.random.key(0), x, train=False)
    >>> y.ravel()
    Array([1.5], dtype=float32)
    """

    lam: Annotated[float, within(0.0, 1e6)] = 1.0
    learned: Literal[None, "constant", "channel"] = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b _ _ c"]:
        check_call(self, x)
        lam = jnp.asarray(self.lam, jnp.float32)
        if self.learned is not None:
            size = 1 if self.learned == "constant" else x.shape[-1]
            lam = self.param("lam", nn.initializers.constant(self.lam), (size,), jnp.float32)
            lam = lam[None, None, None, :]
        return ops.max_entropy_pool(x.astype(self.dtype or x.dtype), lam, **self.geometry())


class GFGP(LocalPool):
    """Global-feature-guided pooling: max-ent pooling whose λ comes from the whole map.

    λ = act(BN(W₂ ReLU(BN(W₁ GAP(x) + b₁)) + b₂)), one for each image and channel, with W₁: C → C/2
    and W₂: C/2 → C; then `MaxEntropyPool` with this λ.
    Kobayashi, "Global Feature Guided Local Pooling", ICCV 2019.

    Attributes as in `LocalPool`, and:
      activation: act.
      hidden_node: outputs of W₁; None: C/2.
      mode: what has a λ of its own: 'sample_channel', as published; 'sample', where W₂ has one
        output; 'position', each of the outputs [B, H', W', C], where the mean of its window takes
        the place of GAP(x).
      kernel_init, bias_init: of W₁ and W₂, b₁ and b₂; the defaults are those of the published
        ResNets.
      axis_name: mapped axis that BN statistics are averaged over.

    Call:
      x: [B, H, W, C], any floating dtype; train: whether BN uses and updates batch statistics.

    Returns:
      [B, H', W', C] in `dtype`; λ and weights are float32.

    Raises:
      UsageError: x is no feature map, the window does not fit or `activation` is unknown.

    >>> y, _ = GFGP(2).init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 8)), train=False)
    >>> y.shape
    (2, 2, 2, 8)
    """

    # Numbers of the original's path from features to λ.
    torch_names: ClassVar = (
        (r"\b(pool\w*)/squeeze\b", r"\1.ToParam.1"),
        (r"\b(pool\w*)/squeeze_norm\b", r"\1.ToParam.2"),
        (r"\b(pool\w*)/excite\b", r"\1.ToParam.4"),
        (r"\b(pool\w*)/excite_norm\b", r"\1.ToParam.5"),
    )

    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    hidden_node: Count | None = None
    mode: Literal["sample_channel", "sample", "position"] = "sample_channel"
    kernel_init: Callable[..., jax.Array] = kaiming_normal
    bias_init: Callable[..., jax.Array] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> Float[jax.Array, "b _ _ c"]:
        check_call(self, x)
        dtype = self.dtype or x.dtype
        x = ops.widen(x.astype(dtype))
        channels = x.shape[-1]
        if self.mode == "position":
            y = ops.max_entropy_pool(x, 0.0, **self.geometry())
        else:
            y = x.mean((1, 2), keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32))
        hidden = self.hidden_node or max(channels // 2, 1)
        linear = partial(PointwiseConv, kernel_init=self.kernel_init, bias_init=self.bias_init)
        y = linear(hidden, name="squeeze")(y)
        y = nn.relu(BatchNorm(axis_name=self.axis_name, name="squeeze_norm")(y, train))
        outputs = 1 if self.mode == "sample" else channels
        y = linear(outputs, name="excite")(y)
        y = BatchNorm(axis_name=self.axis_name, name="excite_norm")(y, train)
        lam = nn.sigmoid(y) if self.activation == "sigmoid" else nn.softplus(y)
        y = ops.max_entropy_pool(x, lam, **self.geometry())
        return ops.narrow(y, dtype)
