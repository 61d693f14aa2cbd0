"""The equations in float64 NumPy, one image, one matrix, one window at a time."""

import numpy as np


def covariance(x):
    found = []
    for image in np.float64(x):
        rows = image.reshape(-1, image.shape[-1])
        rows = rows - rows.mean(0)
        found.append(rows.T @ rows / len(rows))
    return np.array(found)


def matrix_sqrt(a, num_iters):
    found = []
    for matrix in np.float64(a):
        trace, identity = np.trace(matrix), np.eye(len(matrix))
        if trace <= 0:
            found.append(np.zeros_like(matrix))
            continue
        y, z = matrix / trace, identity
        for _ in range(num_iters):
            t = (3 * identity - z @ y) / 2
            y, z = y @ t, t @ z
        found.append(np.sqrt(trace) * y)
    return np.array(found)


def isqrt_cov(x, num_iters):
    root = matrix_sqrt(covariance(x), num_iters)
    return np.array([matrix[np.triu_indices(x.shape[-1])] for matrix in root])


def isqrt_gaussian(x, num_iters, beta):
    mean = np.float64(x).mean((1, 2))[..., None]
    one = np.ones((len(x), 1, 1))
    outer = beta**2 * mean * mean.swapaxes(1, 2)
    top = np.concatenate([covariance(x) + outer, beta * mean], axis=2)
    bottom = np.concatenate([beta * mean.swapaxes(1, 2), one], axis=2)
    root = matrix_sqrt(np.concatenate([top, bottom], axis=1), num_iters)
    return np.array([matrix[np.triu_indices(x.shape[-1] + 1)] for matrix in root])


def matrix_power(a, alpha):
    values, vectors = np.linalg.eigh(np.float64(a))
    return np.einsum("bij,bj,bkj->bik", vectors, np.maximum(values, 0) ** alpha, vectors)


def matrix_inverse_sqrt(a, num_iters):
    found = []
    for matrix in np.float64(a):
        trace, identity = np.trace(matrix), np.eye(len(matrix))
        z = identity
        for _ in range(num_iters):
            z = 1.5 * z - 0.5 * z @ z @ z @ matrix / trace
        found.append(z / np.sqrt(trace))
    return np.array(found)


def sparse_inverse_covariance(a, sparsity, step_size, num_steps, num_iters):
    a = np.float64(a) / np.trace(a, axis1=1, axis2=2)[:, None, None]
    theta = matrix_inverse_sqrt(a, num_iters) @ matrix_inverse_sqrt(a, num_iters)
    for step in range(num_steps):
        size = step_size * (1 - step / (num_steps - 1))
        root = matrix_inverse_sqrt(theta, num_iters)
        gradient = a - root @ root
        plus = np.maximum(np.maximum(theta, 0) - size * (gradient + sparsity), 0)
        minus = np.maximum(np.maximum(-theta, 0) - size * (sparsity - gradient), 0)
        theta = plus - minus
    return theta / np.sqrt(np.trace(theta, axis1=1, axis2=2))[:, None, None]


def brownian_distance_matrix(x, log_scale):
    found = []
    for image in np.float64(x):
        rows = image.reshape(-1, image.shape[-1]).T
        squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        distances = np.sqrt(np.exp(log_scale) * squares + 1e-5)
        centring = np.eye(len(rows)) - 1 / len(rows)
        found.append(centring @ distances @ centring)
    return np.array(found)


def matrix_log(a, epsilon):
    values, vectors = np.linalg.eigh(np.float64(a))
    return np.einsum("bij,bj,bkj->bik", vectors, np.log(np.maximum(values, 0) + epsilon), vectors)


def matrix_sqrt_pade(a):
    """By partial fractions: √(1 + z) ≈ 1 + Σⱼ aⱼz/(1 + bⱼz)."""
    found = []
    for matrix in np.float64(a):
        norm, identity = np.linalg.norm(matrix), np.eye(len(matrix))
        z = matrix / norm - identity
        root = identity
        for j in range(1, 6):
            share, pole = 2 / 11 * np.sin(j * np.pi / 11) ** 2, np.cos(j * np.pi / 11) ** 2
            root = root + share * z @ np.linalg.inv(identity + pole * z)
        found.append(np.sqrt(norm) * root)
    return np.array(found)


def lyapunov(root, d):
    """z of root z + z root = d."""
    found = []
    for b, right in zip(np.float64(root), np.float64(d), strict=True):
        identity = np.eye(len(b))
        both = np.kron(b, identity) + np.kron(identity, b)
        found.append(np.linalg.solve(both, right.ravel()).reshape(b.shape))
    return np.array(found)


def _normalized_root(y):
    y = np.sign(y) * np.sqrt(np.abs(y) + 1e-8)
    return y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)


def bilinear(x):
    found = []
    for image in np.float64(x):
        rows = image.reshape(-1, image.shape[-1])
        found.append((rows.T @ rows / len(rows)).ravel())
    return _normalized_root(np.array(found))


def compact_bilinear(x, hash_1, sign_1, hash_2, sign_2, size):
    found = np.zeros((len(x), size))
    for b, image in enumerate(np.float64(x)):
        for row in image.reshape(-1, image.shape[-1]):
            for c in range(len(row)):
                for d in range(len(row)):
                    place = (hash_1[c] + hash_2[d]) % size
                    found[b, place] += sign_1[c] * row[c] * sign_2[d] * row[d]
    return _normalized_root(found)


def max_entropy_pool(x, lam, window, strides, padding, shape):
    x, lam = np.float64(x), np.float64(lam)
    batch, height, width, channels = x.shape
    lam = np.broadcast_to(lam, (batch, *shape, channels))
    y = np.zeros((batch, *shape, channels))
    for b, i, j, c in np.ndindex(*y.shape):
        top, left = i * strides[0] - padding[0], j * strides[1] - padding[1]
        rows = slice(max(top, 0), min(top + window[0], height))
        columns = slice(max(left, 0), min(left + window[1], width))
        values = x[b, rows, columns, c].ravel()
        scores = lam[b, i, j, c] * values
        weights = np.exp(scores - scores.max())
        y[b, i, j, c] = weights @ values / weights.sum()
    return y


def generalized_mean(x, power, epsilon):
    found = []
    for image in np.float64(x):
        rows = np.maximum(image.reshape(-1, image.shape[-1]), epsilon)
        geometric = np.exp(np.log(rows).mean(0))
        found.append((rows**power).mean(0) ** (1 / power) if power else geometric)
    return np.array(found)


def max_pool(x, window, strides, padding, cotangent):
    """The maxima, and the cotangents added up at each window's first maximum."""
    y, gradient = np.empty(cotangent.shape), np.zeros(x.shape)
    for b, i, j, c in np.ndindex(cotangent.shape):
        rows = i * strides[0] - padding[0] + np.arange(window[0])
        columns = j * strides[1] - padding[1] + np.arange(window[1])
        inside = [
            (b, r, s, c)
            for r in rows
            for s in columns
            if 0 <= r < x.shape[1] and 0 <= s < x.shape[2]
        ]
        first = max(inside, key=lambda at: x[at])
        y[b, i, j, c] = x[first]
        gradient[first] += cotangent[b, i, j, c]
    return y, gradient


def adaptive_average_pool(x, shape):
    x = np.float64(x)
    y = np.zeros((len(x), *shape, x.shape[-1]))
    for i, j in np.ndindex(*shape):
        rows = slice(i * x.shape[1] // shape[0], -(-(i + 1) * x.shape[1] // shape[0]))
        columns = slice(j * x.shape[2] // shape[1], -(-(j + 1) * x.shape[2] // shape[1]))
        y[:, i, j] = x[:, rows, columns].mean((1, 2))
    return y


def position_covariance(x):
    found = []
    for image in np.float64(x):
        rows = image.reshape(-1, image.shape[-1])
        m, d = rows.shape
        found.append(rows @ (np.eye(d) / m - np.ones((d, d)) / m**2) @ rows.T)
    return np.array(found)


def row_convolution(a, kernel, bias):
    found = np.zeros((len(a), kernel.shape[0], kernel.shape[2]))
    for b, r, f in np.ndindex(*found.shape):
        found[b, r, f] = np.dot(np.float64(a[b, r]), kernel[r, :, f]) + bias[r, f]
    return found.reshape(len(a), -1)


def _steps(mean, peak, weights, biases, inner):
    s = np.exp(mean - mean.max())
    s /= s.sum()
    psi = inner(s * (mean @ weights[0]) + biases[0])
    phi = inner(s * (peak @ weights[1]) + biases[1])
    return psi * (phi @ weights[2]) + biases[2]


def cgd(x, weights, biases, inner_tanh):
    inner = np.tanh if inner_tanh else np.asarray
    found = []
    for image in np.float64(x):
        gate = np.tanh(_steps(image.mean((0, 1)), image.max((0, 1)), weights, biases, inner))
        found.append(image * (1 + gate))
    return np.array(found)


def spatial_cgd(x, row_weights, column_weights, row_biases, column_biases):
    found = []
    for image in np.float64(x):
        mean, peak = image.mean(2), image.max(2)
        rows = _steps(mean.mean(1), peak.max(1), row_weights, row_biases, np.tanh)
        columns = _steps(mean.mean(0), peak.max(0), column_weights, column_biases, np.tanh)
        found.append(image * (1 + np.tanh(np.outer(rows, columns)))[..., None])
    return np.array(found)
