"""Mixup and CutMix: the examples of a batch mixed in pairs, and their labels alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (key, uint8 [b,H,W,3]) → float32 [b,H,W,3] in [0, 255], and the share λ of each example's own.
Mixing = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def partners(x: jax.Array) -> jax.Array:
    """Each row's other one of rows 2i and 2i + 1: [b, …], b even → [b, …].

    A batch comes in random order, and such pairs lie on one device however many there are.
    """
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def make_mixing(mixup: float, cutmix: float) -> Mixing | None:
    """What mixes the images of a batch, with one λ for all; None where both are 0.

    - mixup (Zhang et al. 2018): λ x + (1 − λ) x′, λ ~ Beta(α, α).
    - CutMix (Yun et al. 2019): a rectangle of x′ in x. Its sides are √(1 − λ) of the image's, λ as
      above, its centre is uniform in the image, what lies outside is cut off; λ is then the share
      of x that is left.

    With both, each batch is mixed in one of the two ways, each with probability ½.

    Args:
      mixup, cutmix: α of each; 0: it is not used.
    """
    if not (mixup or cutmix):
        return None

    def mix(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_way, of_mixup, of_cutmix = jax.random.split(key, 3)
        images = images.astype(jnp.float32)
        if not cutmix:
            return _mixup(of_mixup, images, mixup)
        if not mixup:
            return _cutmix(of_cutmix, images, cutmix)
        found = _mixup(of_mixup, images, mixup), _cutmix(of_cutmix, images, cutmix)
        cut = jax.random.bernoulli(of_way)
        return jax.tree.map(lambda a, b: jnp.where(cut, b, a), *found)

    return mix


def _mixup(key: jax.Array, images: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    share = jax.random.beta(key, alpha, alpha)
    return share * images + (1 - share) * partners(images), share


def _cutmix(key: jax.Array, images: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    of_share, of_place = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(of_share, alpha, alpha))
    sizes = jnp.array(images.shape[1:3])
    centre = jax.random.uniform(of_place, (2,)) * sizes
    low, high = (jnp.round(centre + sign * side * sizes / 2) for sign in (-1, 1))
    rows, columns = (
        (low[axis] <= jnp.arange(size)) & (jnp.arange(size) < high[axis])
        for axis, size in enumerate(images.shape[1:3])
    )
    inside = rows[:, None] & columns
    return jnp.where(inside[..., None], partners(images), images), 1 - inside.mean()
