"""What is in a proposal: class, box and mask."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.dtypes import promote_dtype
from jax import lax

from sop.detection import boxes as box
from sop.detection.losses import smooth_l1
from sop.detection.matching import match
from sop.detection.roi_align import levels, roi_align
from sop.detection.sampling import random_sample
from sop.models.network import Conv
from sop.ops import at_least_float32
from sop.ops.platform import interleave, multiply

POSITIVES = 0.25  # share of the proposals that are drawn
SMALLEST = 1e-2  # side of a detection in pixels


def crops(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    strides: Sequence[float],
    size: int,
    inclusive: bool = False,
) -> jax.Array:
    """Boxes [B, R, 4] cut out of the levels [B, h, w, C] they belong to: [B, R, size, size, C]."""
    edges = boxes + box.last_pixel(inclusive)
    level = levels(edges, strides[0], len(maps))
    # Old mmdetection had no least side.
    cut = partial(roi_align, strides=strides, size=size, smallest=0.0 if inclusive else 1.0)
    return jax.vmap(cut)(maps, edges, level)


def _by_channels(channels, x, kernel, *arguments, **options):
    """`lax.dot_general` of maps with a kernel that counts them channel by channel, as PyTorch does.

    The kernel is put into the order of the maps: its rows are long, which is fast, and of maps
    there are many.
    """
    kernel = kernel.reshape(channels, -1, kernel.shape[-1]).swapaxes(0, 1).reshape(kernel.shape)
    return lax.dot_general(x, kernel, *arguments, **options)


class BoxHead(nn.Module):
    """Two layers with ReLU, then logits of background and C classes and a box for each class.

    Attributes:
      num_classes: C.
      width: of the layers.
      dtype: of the products.

    Call:
      x: [B, R, s, s, c].

    Returns:
      [B, R, C + 1], background first, and [B, R, C, 4] in the terms of
      `sop.detection.boxes.encode`; float32. The background has parameters of a box, which nothing
      reads, as in the originals.
    """

    num_classes: int
    width: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer = partial(nn.Dense, dtype=self.dtype)
        hidden = partial(layer, self.width, kernel_init=nn.initializers.xavier_uniform())
        by_channels = partial(_by_channels, x.shape[-1])
        x = x.reshape(*x.shape[:2], -1)
        x = nn.relu(hidden(name="hidden1", dot_general=by_channels)(x))
        x = nn.relu(hidden(name="hidden2")(x))
        normal = nn.initializers.normal
        logits = layer(self.num_classes + 1, kernel_init=normal(0.01), name="classes")(x)
        deltas = layer(4 * (self.num_classes + 1), kernel_init=normal(0.001), name="boxes")(x)
        deltas = deltas.reshape(*deltas.shape[:2], -1, 4)[:, :, 1:]
        return at_least_float32(logits), at_least_float32(deltas)


class _Doubling(nn.Module):
    """2×2 transposed convolution of stride 2: y[2i + a, 2j + b] = W_ab x[i, j] + bias.

    Its places do not overlap, so that it is one product, and its gradient two.
    """

    width: int
    kernel_init: Callable[..., jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count, height, width, channels = x.shape
        kernel = self.param("kernel", self.kernel_init, (2, 2, self.width, channels))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = multiply(x, kernel.reshape(-1, channels).T).astype(x.dtype)
        y = y.reshape(count, height, width, 4, -1) + bias
        return interleave([y[..., place, :] for place in range(4)], (2, 2))


class MaskHead(nn.Module):
    """Four 3×3 convolutions, a transposed one that doubles the sides, a mask for each of C classes.

    He et al., "Mask R-CNN", ICCV 2017, figure 4.

    Attributes:
      num_classes: C.
      width: of the convolutions.
      dtype: of the convolutions.

    Call:
      x: [B, R, s, s, c].

    Returns:
      logits [B, R, 2s, 2s, C + 1], float32; the background's, which come first, nothing reads.
    """

    num_classes: int
    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        lead, x = x.shape[:2], x.reshape(-1, *x.shape[2:])
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, use_bias=True, kernel_init=init, dtype=self.dtype)
        for place in range(4):
            x = nn.relu(conv(self.width, (3, 3), padding=1, name=f"conv{place}")(x))
        double = _Doubling(self.width, init, self.dtype, name="double")
        x = conv(self.num_classes + 1, (1, 1), name="masks")(nn.relu(double(x)))
        return at_least_float32(x.reshape(*lead, *x.shape[1:]))


class Drawn(NamedTuple):
    """Proposals drawn for training, the positives first.

    Attributes:
      boxes: float32 [S, 4].
      object: int32 [S], which object a positive answers for.
      classes: int32 [S], 0 for background, else label + 1.
      positive, valid: see `sop.detection.sampling.Sample`.
    """

    boxes: jax.Array
    object: jax.Array
    classes: jax.Array
    positive: jax.Array
    valid: jax.Array


def draw(
    key: jax.Array,
    proposals: jax.Array,
    valid: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    objects: jax.Array,
    *,
    samples: int,
    inclusive: bool = False,
) -> Drawn:
    """Proposals of one image to learn from; see `sop.detection.FasterRCNN`.

    Args:
      proposals, valid: [P, 4], [P].
      boxes, labels, objects: [N, 4], [N], [N] of the objects; False in the last: only fills up.
      samples: S.
    """
    # Those that only fill up are no object's best.
    overlaps = jnp.where(valid[:, None], box.iou(proposals, boxes, inclusive), -1)
    own = {"least": 0.5, "all_best": True} if inclusive else {}
    found = match(overlaps, objects, positive=0.5, negative=0.5, **own)
    # The objects' own boxes are proposals as well, each for itself.
    places = jnp.concatenate([proposals, boxes])
    index = jnp.concatenate([found.index, jnp.arange(len(boxes), dtype=jnp.int32)])
    positive = jnp.concatenate([found.positive, objects])
    negative = jnp.concatenate([found.negative & valid, jnp.zeros_like(objects)])
    sample = random_sample(key, positive, negative, samples, POSITIVES)
    theirs = index[sample.index]
    classes = jnp.where(sample.positive, labels[theirs] + 1, 0)
    return Drawn(places[sample.index], theirs, classes, sample.positive, sample.valid)


def losses(
    logits: jax.Array,
    deltas: jax.Array,
    drawn: Drawn,
    boxes: jax.Array,
    *,
    beta: float = 1.0,
    inclusive: bool = False,
) -> dict[str, jax.Array]:
    """The losses of classes and boxes, see `sop.detection.FasterRCNN`.

    Args:
      logits, deltas: of `BoxHead`.
      drawn: with a leading B.
      boxes: [B, N, 4] of the objects.
      beta: of smooth L1.
    """
    theirs = jnp.take_along_axis(boxes, drawn.object[..., None], 1)
    positive = drawn.positive[..., None]
    # Where there is no object, a box of an area stands in for both.
    some = jnp.array([0, 0, 1, 1], boxes.dtype)
    starts, theirs = (jnp.where(positive, x, some) for x in (drawn.boxes, theirs))
    wanted = box.encode(theirs, starts, box.DEVIATIONS, inclusive)
    label = jnp.maximum(drawn.classes - 1, 0)
    said = jnp.take_along_axis(deltas, label[..., None, None], 2)[..., 0, :]
    distance = smooth_l1(said - wanted, beta).sum(-1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, drawn.classes)
    count = jnp.maximum(drawn.valid.sum(), 1)
    return {
        "classification": jnp.sum(entropy, where=drawn.valid) / count,
        "box": jnp.sum(distance, where=drawn.positive) / count,
    }


def of_class(masks: jax.Array, classes: jax.Array) -> jax.Array:
    """[B, R, m, m, C + 1], int32 [B, R] → [B, R, m, m]."""
    return jnp.take_along_axis(masks, classes[..., None, None, None], -1)[..., 0]


def mask_targets(masks: jax.Array, boxes: jax.Array, proposals: jax.Array, size: int) -> jax.Array:
    """What of an object's mask a proposal sees: bool [..., size, size].

    The mask is interpolated bilinearly in the middles of size² equal bins, is 0 outside the
    object's box, and taken where it is ½ or more.

    Args:
      masks: [..., M, M] in [0, 1], each a box's own part of the mask.
      boxes: [..., 4] the edges of these boxes.
      proposals: [..., 4] likewise.
    """
    cells = masks.shape[-1]
    corner, sides = boxes[..., :2], jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
    bins = (jnp.arange(size) + 0.5) / size
    low, high = proposals[..., None, :2], proposals[..., None, 2:]
    at = low + bins[:, None] * (high - low)
    share = (at - corner[..., None, :]) / sides[..., None, :]  # [..., size, (x, y)]
    inside = (share >= 0) & (share <= 1)
    place = jnp.clip(share * cells - 0.5, 0, cells - 1)
    weights = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(cells)), 0)
    weights = weights * inside[..., None]
    columns, rows = weights[..., 0, :], weights[..., 1, :]
    return jnp.einsum("...im,...mn,...jn->...ij", rows, masks, columns) >= 0.5


def mask_losses(
    logits: jax.Array, drawn: Drawn, boxes: jax.Array, masks: jax.Array, inclusive: bool = False
) -> dict[str, jax.Array]:
    """{'mask': mean binary cross-entropy of the positives' masks, each of its own class}.

    Args:
      logits: [B, R, m, m, C + 1].
      drawn: with a leading B, R of them.
      boxes: [B, N, 4] of the objects.
      masks: uint8 [B, N, M, M], each object's mask in its box, 255 where it is.
    """
    edge = box.last_pixel(inclusive)
    theirs = jnp.take_along_axis(boxes, drawn.object[..., None], 1) + edge
    shapes = jax.vmap(lambda masks, index: masks[index])(masks, drawn.object) / 255
    wanted = mask_targets(shapes, theirs, drawn.boxes + edge, logits.shape[2])
    said = of_class(logits, drawn.classes)
    entropy = optax.sigmoid_binary_cross_entropy(said, wanted).mean((-2, -1))
    count = jnp.maximum(drawn.positive.sum(), 1)
    return {"mask": jnp.sum(entropy, where=drawn.positive) / count}
