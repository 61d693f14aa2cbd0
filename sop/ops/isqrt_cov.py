"""iSQRT-COV: the global covariance pooling of fast MPN-COV."""

from sop.ops.covariance import covariance, upper_triangle
from sop.ops.matrix_functions import matrix_sqrt


def isqrt_cov(x, num_iters=5, autodiff=False):
    """Upper triangle of the square root of the covariance, by N Newton–Schulz iterations.

    `upper_triangle(matrix_sqrt(covariance(x), num_iters))`.
    Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization", CVPR 2018, section 3.

    Args:
      x: features [B, H, W, C], any floating dtype.
      num_iters: N ≥ 1; 5 in fast MPN-COV, 3 in GSoP-Net2.
      autodiff: plain automatic differentiation instead of the hand-derived backward pass.

    Returns:
      [B, C(C+1)/2], row-major as `numpy.triu_indices`, float32 (float64 for float64 x).

    Raises:
      ValueError: x is not a floating [B, H, W, C] with at least one position and one channel, or
        num_iters no positive int.

    >>> import jax.numpy as jnp
    >>> isqrt_cov(jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)).tolist()
    [[1.0]]
    """
    return upper_triangle(matrix_sqrt(covariance(x), num_iters, autodiff))
