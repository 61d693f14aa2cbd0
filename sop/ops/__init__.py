"""The mathematics: pure functions on arrays."""

from sop.ops.bilinear import bilinear, compact_bilinear, signed_sqrt, tensor_sketch_hashes
from sop.ops.brownian import brownian_distance_matrix
from sop.ops.cgd import cgd, spatial_cgd, toy_cgd
from sop.ops.cosine import cosine_coefficients
from sop.ops.covariance import (
    covariance,
    position_covariance,
    row_convolution,
    scaled_covariance,
    upper_triangle,
)
from sop.ops.cross_covariance import cross_covariance, singular_value_power, unit
from sop.ops.dropcov import drop_rate
from sop.ops.isqrt_cov import isqrt_cov, isqrt_gaussian
from sop.ops.matrix_functions import matrix_inverse_sqrt, matrix_sqrt
from sop.ops.means import first_maximum, generalized_mean
from sop.ops.pade import matrix_sqrt_pade, sqrt_cov_pade
from sop.ops.pooling import adaptive_average_pool, max_entropy_pool, max_pool, pool_padding
from sop.ops.precision import at_least_float32, einsum, magnitude, narrow, widen
from sop.ops.simam import simam
from sop.ops.sparse_inverse import sparse_inverse_covariance
from sop.ops.spectral import log_cov, matrix_log, matrix_power, power_cov

__all__ = [
    "adaptive_average_pool",
    "at_least_float32",
    "bilinear",
    "brownian_distance_matrix",
    "cgd",
    "compact_bilinear",
    "cosine_coefficients",
    "covariance",
    "cross_covariance",
    "drop_rate",
    "einsum",
    "first_maximum",
    "generalized_mean",
    "isqrt_cov",
    "isqrt_gaussian",
    "log_cov",
    "magnitude",
    "matrix_inverse_sqrt",
    "matrix_log",
    "matrix_power",
    "matrix_sqrt",
    "matrix_sqrt_pade",
    "max_entropy_pool",
    "max_pool",
    "narrow",
    "pool_padding",
    "position_covariance",
    "power_cov",
    "row_convolution",
    "scaled_covariance",
    "signed_sqrt",
    "simam",
    "singular_value_power",
    "sparse_inverse_covariance",
    "spatial_cgd",
    "sqrt_cov_pade",
    "tensor_sketch_hashes",
    "toy_cgd",
    "unit",
    "upper_triangle",
    "widen",
]
