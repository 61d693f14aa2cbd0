"""Sparse inverse covariance by proximal gradient steps."""

import jax
import jax.numpy as jnp
from jax import lax

from sop.checks import Count, check
from sop.errors import UsageError
from sop.ops.annotations import Matrices
from sop.ops.arguments import require_square
from sop.ops.matrix_functions import matrix_inverse_sqrt, product, symmetrize, trace_normalized
from sop.ops.precision import at_least_float32


def sparse_inverse_covariance(
    a: Matrices,
    sparsity: float = 0.01,
    step_size: float = 1.0,
    num_steps: int = 5,
    num_iters: int = 7,
) -> Matrices:
    """Sparse inverses of covariances A = a/tr a, divided by the root of their trace.

    Steps down −log det Θ + tr(ΘA) + λ Σ|Θ| from Θ = A⁻¹, on positive and negative parts apart:
    G = A − Θ⁻¹;  Θ± ← ReLU(Θ± − ηₖ(λ ± G)), ηₖ = η (1 − k/(K − 1)), k = 0 … K − 1; then
    Θ/√tr Θ. Inverses are squares of `matrix_inverse_sqrt`. A step that leaves the positive definite
    matrices, where that iteration diverges, is not taken.
    Rahman et al., "Learning Partial Correlation based Deep Visual Representation for Image
    Classification", CVPR 2023, section 3.2 and algorithm 1.

    Args:
      a: matrices [..., C, C], any floating dtype; only their symmetric part counts.
      sparsity: λ ≥ 0.
      step_size: η ≥ 0.
      num_steps: K ≥ 2.
      num_iters: N of Newton–Schulz.

    Returns:
      [..., C, C], float32 (float64 for float64 a); zero where a is.

    Raises:
      UsageError: a is not a stack of square matrices, or K or N no such number.

    >>> sparse_inverse_covariance(jnp.eye(2), sparsity=0.0).round(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    require_square(a)
    check("num_steps", num_steps, Count)
    if num_steps < 2:
        raise UsageError(f"num_steps is {num_steps}: give at least 2, the last of which is empty.")
    a = trace_normalized(symmetrize(at_least_float32(a)))
    theta = _inverse(a, num_iters)
    for step in range(num_steps - 1):
        size = step_size * (1 - step / (num_steps - 1))
        gradient = a - _inverse(theta, num_iters)
        positive = jax.nn.relu(jax.nn.relu(theta) - size * (sparsity + gradient))
        negative = jax.nn.relu(jax.nn.relu(-theta) - size * (sparsity - gradient))
        stepped = symmetrize(positive - negative)
        theta = jnp.where(_is_definite(stepped), stepped, theta)
    trace = jnp.trace(theta, axis1=-2, axis2=-1)[..., None, None]
    return theta / jnp.sqrt(jnp.where(trace <= 0, 1, trace))


def _inverse(a, num_iters):
    root = matrix_inverse_sqrt(a, num_iters)
    return product(root, root)


def _is_definite(a):
    factor = jnp.linalg.cholesky(lax.stop_gradient(a))
    return jnp.isfinite(factor).all(axis=(-2, -1), keepdims=True)
