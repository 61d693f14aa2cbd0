"""How reliably a classifier's weights tell the order of the triangle that they were trained on.

`python -m tests.triangle_orders` trains softmax classifiers on square roots of covariances of
correlated features after ReLU, each with its triangle read by rows and by columns, and prints how
many of the orders were told, how many left open and how many taken for the other; the last column
is the smallest |z| of `sop.torch_weights.triangle.likely_order`, for no steps the largest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sop import ops
from sop.torch_weights.triangle import columns_by_rows, evidence, likely_order

CLASSES, POSITIONS, IMAGES = 10, 7, 600
SIZES, STEPS, SEEDS = (16, 32, 64, 128), (0, 10, 100), 10


def train(d: int, steps: int, seed: int) -> np.ndarray:
    """[d(d+1)/2, 10]: the kernel, by rows, after so many steps from PyTorch's initial values."""
    keys = jax.random.split(jax.random.key(seed), 6)
    labels = jax.random.randint(keys[0], (IMAGES,), 0, CLASSES)
    mixing = jnp.eye(d) + 0.5 * jax.random.normal(keys[1], (CLASSES, d, d)) / d**0.5
    means = 0.3 * jax.random.normal(keys[2], (CLASSES, d))
    x = jax.random.normal(keys[3], (IMAGES, POSITIONS**2, d))
    x = jax.nn.relu(jnp.einsum("npc,ncd->npd", x, mixing[labels]) + means[labels][:, None])
    y = ops.isqrt_cov(x.reshape(IMAGES, POSITIONS, POSITIONS, d), 5)
    bound = y.shape[1] ** -0.5
    start = jax.random.uniform(keys[4], (y.shape[1], CLASSES), minval=-bound, maxval=bound)
    return np.asarray(_descend(y, jax.nn.one_hot(labels, CLASSES), start, steps))


@jax.jit
def _descend(y, targets, kernel, steps):
    """Gradient descent with momentum 0.9, rate 0.1 and weight decay 1e-4 on the cross-entropy."""

    def step(_, state):
        kernel, velocity = state
        gradient = y.T @ (jax.nn.softmax(y @ kernel) - targets) / len(y)
        velocity = 0.9 * velocity + gradient + 1e-4 * kernel
        return kernel - 0.1 * velocity, velocity

    return jax.lax.fori_loop(0, steps, step, (kernel, jnp.zeros_like(kernel)))[0]


def outcomes(d: int, steps: int, seeds: int = SEEDS) -> tuple[list[str | None], list[float]]:
    """What is told of kernels whose order is 'rows' and whose order is 'columns', and |z|."""
    told, sizes = [], []
    for seed in range(seeds):
        by_rows = train(d, steps, seed)
        by_columns = by_rows[np.argsort(columns_by_rows(len(by_rows)))]
        for kernel, order in ((by_rows, "rows"), (by_columns, "columns")):
            found = likely_order(kernel)
            told.append(found and ("right" if found == order else "wrong"))
            sizes.append(abs(evidence(kernel)))
    return told, sizes


def main() -> None:
    print("  d  steps  right  open  wrong    |z|")
    for d in SIZES:
        for steps in STEPS:
            told, sizes = outcomes(d, steps)
            counts = [told.count(each) for each in ("right", None, "wrong")]
            z = min(sizes) if steps else max(sizes)
            print(f"{d:3} {steps:6} {counts[0]:6} {counts[1]:5} {counts[2]:6} {z:6.1f}", flush=True)


if __name__ == "__main__":
    main()
