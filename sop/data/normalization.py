"""Named statistics of data sets, and the normalisation that runs on the device."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sop.errors import UsageError, show

Channels = Sequence[float]  # three, of red, green and blue

# name → (means, standard deviations) of the channels of images scaled to [0, 1].
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # As fast MPN-COV's TensorFlow code rounds them.
    "cifar100_tf": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "digits": ((0.3054, 0.3054, 0.3054), (0.3759, 0.3759, 0.3759)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def check_normalization(name: str) -> None:
    """Raises UsageError unless `name` is a key of STATISTICS."""
    if name not in STATISTICS:
        raise UsageError(
            f"Normalization {show(name)} is unknown; set config.input.normalization to one of "
            f"{', '.join(sorted(STATISTICS))}."
        )


def normalize(
    images: jax.Array,
    name: str,
    dtype: jnp.dtype = jnp.float32,
    mean: Channels | None = None,
    deviation: Channels | None = None,
) -> jax.Array:
    """(images / 255 − mean) / deviation, with the statistics called `name` or given.

    Args:
      images: [..., 3], uint8 or a float type, values in [0, 255].
      name: A key of `STATISTICS`; 'none' only scales to [0, 1].
      dtype: Of the result; the arithmetic is float32.
      mean, deviation: Of the channels of images scaled to [0, 1]; None: those of `name`.

    Raises:
      UsageError: The name is unknown.
    """
    check_normalization(name)
    given = (mean, deviation)
    mean, deviation = (
        jnp.asarray(named if own is None else own, jnp.float32)
        for named, own in zip(STATISTICS[name], given, strict=True)
    )
    return ((images.astype(jnp.float32) - 255 * mean) / (255 * deviation)).astype(dtype)


def make_normalize(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """`normalize` as a run's `config.input` and `config.dtype` say."""
    options, dtype = config.input, jnp.dtype(config.dtype)
    return partial(
        normalize,
        name=options.normalization,
        dtype=dtype,
        mean=options.mean,
        deviation=options.deviation,
    )
