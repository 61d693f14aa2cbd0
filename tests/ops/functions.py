"""Each public function of several shapes of input, for the tests that treat them alike."""

import jax.numpy as jnp
import numpy as np

from sop import ops

HASHES = ops.tensor_sketch_hashes(0, 3, 8)
VECTOR = np.linspace(-1, 1, 3, dtype=np.float32)


def fewer_positions(x):
    """[B, H, W, 3] → [B, ≤ 2, ≤ 2, 6], so that functions of covariances take the Gram matrix."""
    return jnp.concatenate([x, x[:, ::-1, ::-1]], axis=3)[:, :2, :2]


def on_features(shape):
    """Name → function of a feature map of this shape with 3 channels, differentiable."""
    _, height, width, _ = shape
    rows, columns = np.ones(height, np.float32), np.ones(width, np.float32)
    return {
        "covariance": ops.covariance,
        "position_covariance": ops.position_covariance,
        # An odd number of iterations has every kind of step; the default of 5 only compiles longer.
        "isqrt_cov": lambda x: ops.isqrt_cov(x, 3),
        "isqrt_cov autodiff": lambda x: ops.isqrt_cov(x, 3, autodiff=True),
        "isqrt_cov N=1": lambda x: ops.isqrt_cov(x, 1),
        "isqrt_cov N=4": lambda x: ops.isqrt_cov(x, 4),
        "isqrt_gaussian": lambda x: ops.isqrt_gaussian(x, 3, 0.7),
        "matrix_sqrt": lambda x: ops.matrix_sqrt(ops.covariance(x), 3),
        "matrix_sqrt autodiff": lambda x: ops.matrix_sqrt(ops.covariance(x), 3, autodiff=True),
        "matrix_power": lambda x: ops.matrix_power(ops.covariance(x), 0.5),
        "matrix_inverse_sqrt": lambda x: ops.matrix_inverse_sqrt(ops.covariance(x), 3),
        "sparse_inverse_covariance": lambda x: ops.sparse_inverse_covariance(
            ops.covariance(x), 0.1, num_steps=2, num_iters=2
        ),
        "brownian_distance_matrix": lambda x: ops.brownian_distance_matrix(x, -1.0),
        "matrix_log": lambda x: ops.matrix_log(ops.covariance(x)),
        "power_cov": lambda x: ops.power_cov(fewer_positions(x), 0.5),
        "log_cov": lambda x: ops.log_cov(fewer_positions(x)),
        "upper_triangle": lambda x: ops.upper_triangle(ops.covariance(x)),
        "scaled_covariance": lambda x: ops.scaled_covariance(x)[0],
        "matrix_sqrt_pade": lambda x: ops.matrix_sqrt_pade(ops.covariance(x)),
        "sqrt_cov_pade": ops.sqrt_cov_pade,
        "signed_sqrt": lambda x: ops.signed_sqrt(ops.covariance(x)),
        "first_maximum": lambda x: ops.first_maximum(ops.at_least_float32(x), (1, 2)),
        "generalized_mean": ops.generalized_mean,
        "generalized_mean 1e-9": lambda x: ops.generalized_mean(x, 1e-9),
        "generalized_mean -3": lambda x: ops.generalized_mean(x, -3.0),
        "bilinear": ops.bilinear,
        "compact_bilinear": lambda x: ops.compact_bilinear(x, *HASHES, 8),
        "max_entropy_pool": lambda x: ops.max_entropy_pool(x, 0.7, (1, 1)),
        "max_entropy_pool 2": lambda x: ops.max_entropy_pool(
            x, 0.7, (2, 2), padding=(1, 1), ceil_mode=True
        ),
        "max_entropy_pool 3": lambda x: ops.max_entropy_pool(
            x, 0.7, (3, 3), (2, 2), (1, 1), ceil_mode=True
        ),
        "max_pool": lambda x: ops.max_pool(x, (1, 2), padding=(0, 1), ceil_mode=True),
        "max_pool 3": lambda x: ops.max_pool(x, (3, 3), (2, 2), (1, 1)),
        "adaptive_average_pool": lambda x: ops.adaptive_average_pool(x, (3, 2)),
        "cgd": lambda x: ops.cgd(x, [VECTOR] * 3, [VECTOR] * 3),
        "spatial_cgd": lambda x: ops.spatial_cgd(x, [rows] * 3, [columns] * 3),
        "toy_cgd": lambda x: ops.toy_cgd(x, VECTOR),
    }


# What the equation itself does not look at.
DISCARDS = {
    "max_pool": ("-inf",),
    "max_pool 3": ("-inf",),
    "first_maximum": ("-inf",),
    "generalized_mean": ("-inf",),
    "generalized_mean 1e-9": ("-inf",),
    "generalized_mean -3": ("-inf", "inf"),
}
NAMES = list(on_features((1, 2, 2, 3)))
