"""What the functions of this package check, when traced, of their arguments."""

from typing import Annotated

import jax.numpy as jnp

from sop.checks import check, within
from sop.errors import UsageError
from sop.ops.precision import Precision

# Of Newton–Schulz: each is traced and compiled by itself, and the late ones change nothing.
Iterations = Annotated[int, within(1, 100)]


def require_feature_map(x, argument="x"):
    """Refuses what is not a feature map [B, H, W, C] of floats with H, W, C ≥ 1."""
    if x.ndim != 4:
        raise UsageError(f"{argument} has shape {x.shape}: give a feature map [B, H, W, C].")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UsageError(f"{argument} has dtype {x.dtype}: cast it to a floating type.")
    if 0 in x.shape[1:]:
        raise UsageError(
            f"{argument} has shape {x.shape}: height, width and channels must be at least 1."
        )


def require_iterations(num_iters):
    """Refuses a number of Newton–Schulz iterations beyond `Iterations`."""
    check("num_iters", num_iters, Iterations)


def require_precision(precision):
    """Refuses what is no `Precision`."""
    check("precision", precision, Precision)


def require_square(a):
    """Refuses what is not a stack of square matrices."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise UsageError(f"a has shape {a.shape}: give square matrices [..., C, C].")
