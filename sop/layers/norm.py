"""Batch normalisation with PyTorch's semantics, for networks and layers alike, and layer norm."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from sop import ops
from sop.checks import above, at_least, at_most, check_fields
from sop.errors import UsageError
from sop.ops.annotations import Array
from sop.ops.derivatives import with_pullback


class BatchNorm(nn.Module):
    """Batch normalisation, y = γ (x − μ)/√(σ² + ε) + β for each entry of one axis, as PyTorch's.

    In training μ and σ² = (1/n) Σ (x − μ)² are those of the batch's n values, and the running
    statistics follow, r ← (1 − m) r + m·s, with s the mean μ and the unbiased variance
    n/(n − 1)·σ². Otherwise the running statistics take the place of μ and σ². With `axis_name`
    the n values are those of all devices, whose variances are combined by the law of total
    variance: the mean of their variances and the variance of their means. For n = 1, which
    PyTorch refuses, the variance, 0, is not corrected.
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, algorithms 1 and 2.

    Parameters are `scale` γ and `bias` β, the collection 'batch_stats' holds `mean` and `var`,
    each [C] and float32: names and shapes of `flax.linen.BatchNorm`, so that either reads the
    other's checkpoints. The running variances differ by n/(n − 1).

    Attributes:
      momentum: m, the weight of the new batch, as in PyTorch; flax's is 1 − m.
      epsilon: ε.
      axis: of the entries that have statistics of their own, C.
      scale_init: of γ.
      axis_name: mapped axis over whose devices statistics are taken; each must hold equally many
        values. None: of each device alone.
      dtype: of y; None: that of x. Statistics are at least float32.

    Call:
      x: any shape with at least one value for each entry of `axis`, any floating dtype;
      train: whether statistics are the batch's, and the running ones follow.

    Returns:
      the shape of x, in `dtype`.

    Raises:
      UsageError: a field does not fit its annotation, or x is not floating, empty or lacks `axis`.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> norm = BatchNorm(epsilon=1e-9)
    >>> variables = norm.init(jax.random.key(0), x, train=False)
    >>> y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    >>> y.ravel().tolist(), round(float(updated["batch_stats"]["var"][0]), 3)
    ([-1.0, 1.0], 1.1)
    """

    momentum: Annotated[float, at_least(0), at_most(1)] = 0.1
    epsilon: Annotated[float, above(0)] = 1e-5
    axis: int = -1
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[jax.Array, "*shape"]:
        check_fields(self)
        axis = self._checked_axis(x)
        size = x.shape[axis]
        scale = self.param("scale", self.scale_init, (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (size,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (size,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (size,), jnp.float32)

        dtype = self.dtype or x.dtype
        x = ops.widen(x)
        others = tuple(i for i in range(x.ndim) if i != axis)
        origin = running_mean.value.astype(jnp.promote_types(x.dtype, jnp.float32))
        centre, var = jnp.zeros_like(origin), running_var.value
        if train:
            initializing = self.is_initializing()
            axis_name = None if initializing else self.axis_name
            origin, centre, var = _moments(x, origin, others, self.epsilon)
            count = math.prod(x.shape[i] for i in others)
            mean = origin + centre
            if axis_name is not None:
                centre, mean, var, count = _over_devices(centre, mean, var, count, axis_name)
            if not initializing:
                self._follow(running_mean, mean)
                self._follow(running_var, var * (count / jnp.maximum(count - 1, 1)))

        def spread(values):
            return jnp.expand_dims(values, others)

        scale = lax.rsqrt(var + self.epsilon) * scale
        y = (_centred(x, origin, others) - spread(centre)) * spread(scale) + spread(bias)
        return ops.narrow(y, dtype)

    def _follow(self, running, new):
        # Not +=, which would change a caller's NumPy array.
        running.value = running.value + self.momentum * (new - running.value)

    def _checked_axis(self, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UsageError(f"BatchNorm got x of dtype {x.dtype}: cast it to a floating type.")
        if not -x.ndim <= self.axis < x.ndim:
            raise UsageError(f"BatchNorm got x of shape {x.shape}, which has no axis {self.axis}.")
        if 0 in x.shape:
            raise UsageError(f"BatchNorm got x of shape {x.shape}: every axis must be at least 1.")
        return self.axis % x.ndim


class LayerNorm(nn.Module):
    """y = γ (x − μ)/√(σ² + ε) + β over the last axis, finite where squares would not be.

    Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.

    Attributes:
      epsilon: ε.

    Call:
      x: [..., C], at least float32 → the same.

    >>> y, _ = LayerNorm(1e-9).init_with_output(jax.random.key(0), jnp.array([1e30, 3e30]))
    >>> y.round(3).tolist()
    [-1.0, 1.0]
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[jax.Array, "*shape"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return _standardize(self.epsilon)(x) * scale + bias


def _standardize(epsilon):
    """x → y = (x − μ)/√(σ² + ε) over the last axis, with the pullback in the fewest passes."""

    def with_rate(x):
        """y and 1/√(σ² + ε)."""
        x = x - lax.stop_gradient(x[..., :1])
        x = x - x.mean(-1, keepdims=True)
        size = ops.magnitude(x, -1)
        x = x / size
        variance = jnp.mean(x * x, -1, keepdims=True)
        rate = lax.rsqrt(variance + epsilon / size / size)
        return x * rate, rate / size

    def pullback(x, cotangent):
        y, rate = with_rate(x)
        along = jnp.mean(cotangent * y, -1, keepdims=True)
        return (rate * (cotangent - cotangent.mean(-1, keepdims=True) - y * along),)

    return with_pullback(lambda x: with_rate(x)[0], pullback)


# How far from the origin, in deviations, a mean may be for E[(x − o)²] − (E[x] − o)² to be exact
# to a few roundings.
_NEAR = 2.0


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _moments(x, guess, axes, epsilon):
    """An origin, the mean of x − origin over axes, and the variance of x.

    The origin is the guess where that is near the mean of every channel, and what is then read once
    are sums that, on accelerators, the operation that makes x computes along with it, since the
    guess does not depend on x. Else it is a mean that x is read for. Near means that squares about
    it lose nothing beside var + epsilon.
    """
    centre, var = _about(x, guess, axes)
    near = jnp.square(centre) <= _NEAR**2 * (var + epsilon)

    def again():
        origin = _rough_mean(x, axes)
        return origin, *_about(x, origin, axes)

    # The guess, but varying over mapped axes as all else does.
    origin = jnp.where(near, guess, centre)
    return lax.cond(jnp.all(near), lambda: (origin, centre, var), again)


@_moments.defjvp
def _moments_jvp(axes, epsilon, primals, tangents):
    (x, guess), (dx, _) = primals, tangents
    origin, centre, var = _moments(x, guess, axes, epsilon)
    away = _centred(x, origin, axes) - jnp.expand_dims(centre, axes)
    dx = dx.astype(away.dtype)
    clipped = (var <= 0) | (var > _bounded(jnp.full_like(var, jnp.inf)) / 8)
    dvar = jnp.where(clipped, 0, 2 * (away * dx).mean(axes))
    return (origin, centre, var), (jnp.zeros_like(origin), dx.mean(axes), dvar)


def _centred(x, origin, axes):
    """x − origin, in the type of the latter."""
    return x.astype(origin.dtype) - jnp.expand_dims(origin, axes)


def _about(x, origin, axes):
    """Mean of x − origin and variance of x: E[(x − o)²] − E[x − o]²."""
    x = _centred(x, origin, axes)
    centre = x.mean(axes)
    return centre, _difference(jnp.square(x).mean(axes), jnp.square(centre))


def _rough_mean(x, axes):
    """Mean up to rounding, of a constant without: differences from its first value are zero."""
    first = x[tuple(slice(1) if i in axes else slice(None) for i in range(x.ndim))]
    first = first.astype(jnp.promote_types(x.dtype, jnp.float32)).squeeze(axes)
    return first + _centred(x, first, axes).mean(axes)


def _over_devices(centre, mean, var, count, axis_name):
    """Mean − origin, mean, variance and number of the values of all devices."""
    middle = lax.pmean(mean, axis_name)
    away = mean - middle
    # What the mean of means lost to rounding is given back, so that devices that hold the same
    # constant have no variance.
    lost, var = lax.pmean(jnp.stack([away, _bounded(var + away**2)]), axis_name)
    centre, mean = centre - away + lost, middle + lost
    return centre, mean, _difference(var, lost**2), count * lax.axis_size(axis_name)


def _bounded(square):
    """Far enough from infinity for sums over devices and running averages."""
    return jnp.minimum(square, jnp.finfo(square.dtype).max * 2**-24)


def _difference(a, b):
    return jnp.maximum(_bounded(a) - _bounded(b), 0)
