"""Region proposals: where there may be an object, of whatever class."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sop.detection import boxes as box
from sop.detection.losses import smooth_l1
from sop.detection.matching import match
from sop.detection.nms import suppress
from sop.detection.sampling import random_sample
from sop.models.network import Conv
from sop.ops import at_least_float32

DEVIATIONS = (1.0, 1.0, 1.0, 1.0)  # by which targets are divided
BETA = 1 / 9  # of smooth L1
SMALLEST = 1e-3  # side of a proposal in pixels
POSITIVES = 0.5  # share of the anchors that are drawn


class RPNHead(nn.Module):
    """Region proposal network (Ren et al., NeurIPS 2015, section 3.1), one for all levels.

    3×3 convolution and ReLU, then 1×1 convolutions for the logit of an object and for its box in
    the terms of `sop.detection.boxes.encode`.

    Attributes:
      anchors: at each position.
      dtype: of the convolutions.

    Call:
      maps: [B, h, w, C] of each level.

    Returns:
      of each level logits [B, h · w · anchors] and boxes [B, h · w · anchors, 4], float32.
    """

    anchors: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        conv = partial(
            Conv, use_bias=True, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        shared = conv(maps[0].shape[-1], (3, 3), padding=1, name="conv")
        objects = conv(self.anchors, (1, 1), name="objects")
        boxes = conv(4 * self.anchors, (1, 1), name="boxes")
        hidden = [nn.relu(shared(x)) for x in maps]
        logits = [at_least_float32(objects(x).reshape(x.shape[0], -1)) for x in hidden]
        deltas = [at_least_float32(boxes(x).reshape(x.shape[0], -1, 4)) for x in hidden]
        return logits, deltas


def propose(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    size: jax.Array,
    *,
    anchors: Sequence[np.ndarray],
    count: int,
    overlap: float,
    inclusive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The best proposals in one image.

    The `count` highest logits of each level give boxes, cut off at the image, which are suppressed
    within their level; of those that stay the `count` highest are the proposals. They are not
    differentiated.

    Args:
      logits, deltas: of each level, [n] and [n, 4].
      size: [2], height and width of the image.
      anchors: of each level [n, 4].
      overlap: see `sop.detection.nms.suppress`.
    Returns:
      boxes [count, 4] by falling logit, and bool [count], False where there were too few.
    """

    def best(logits, deltas, anchors):
        scores, index = lax.top_k(logits, min(count, len(logits)))
        boxes = box.decode(deltas[index], jnp.asarray(anchors)[index], DEVIATIONS, inclusive)
        boxes = box.clip(boxes, size - inclusive)
        is_one = (box.sizes(boxes, inclusive) >= SMALLEST).all(-1) & jnp.isfinite(scores)
        scores, boxes = jnp.where(is_one, scores, -jnp.inf), jnp.where(is_one[:, None], boxes, 0)
        missing = (0, count - len(index))
        scores = jnp.pad(scores, missing, constant_values=-jnp.inf)
        return scores, jnp.pad(boxes, (missing, (0, 0)))

    levels = [best(*level) for level in zip(logits, deltas, anchors, strict=True)]
    scores, boxes = lax.stop_gradient(jax.tree.map(lambda *x: jnp.stack(x), *levels))
    kept = suppress(boxes, scores > -jnp.inf, overlap, inclusive)
    scores, place = lax.top_k(jnp.where(kept, scores, -jnp.inf).ravel(), count)
    valid = scores > -jnp.inf
    return jnp.where(valid[:, None], boxes.reshape(-1, 4)[place], 0), valid


def losses(
    keys: jax.Array,
    logits: jax.Array,
    deltas: jax.Array,
    targets: dict[str, jax.Array],
    sizes: jax.Array,
    *,
    anchors: np.ndarray,
    samples: int,
    least: float,
    inclusive: bool = False,
) -> dict[str, jax.Array]:
    """The losses of proposals, see `sop.detection.FasterRCNN`.

    Args:
      keys: of each image, for the draw.
      logits, deltas: [B, A], [B, A, 4].
      targets: of `sop.detection.matching.trainable`.
      sizes: [B, 2], height and width.
      anchors: [A, 4].
      samples: anchors drawn in an image.
      least: the IoU with an object that its best anchors need to have at least.
      inclusive: see `sop.detection.FasterRCNN`.
    """
    places = jnp.asarray(anchors)

    def one_image(key, logits, deltas, boxes, valid, size):
        overlaps, inside = box.iou(places, boxes, inclusive), jnp.array(True)
        if inclusive:  # others are not even an object's best
            inside = (places[:, :2] >= 0).all(-1) & (places[:, 2:] < size[::-1]).all(-1)
            overlaps = jnp.where(inside[:, None], overlaps, -1)
        found = match(
            overlaps,
            valid,
            positive=0.7,
            negative=0.3,
            least=least,
            all_best=True,
            own=not inclusive,
        )
        drawn = random_sample(key, found.positive, found.negative & inside, samples, POSITIVES)
        starts = places[drawn.index]
        theirs = jnp.where(drawn.positive[:, None], boxes[found.index[drawn.index]], starts)
        wanted = box.encode(theirs, starts, DEVIATIONS, inclusive)
        distance = smooth_l1(deltas[drawn.index] - wanted, BETA).sum(-1)
        entropy = optax.sigmoid_binary_cross_entropy(logits[drawn.index], drawn.positive)
        return (
            jnp.sum(entropy, where=drawn.valid),
            jnp.sum(distance, where=drawn.positive),
            drawn.valid.sum(),
        )

    rows = (logits, deltas, targets["boxes"], targets["valid"], sizes)
    entropy, distance, drawn = jax.vmap(one_image)(keys, *rows)
    count = jnp.maximum(drawn.sum(), 1)
    return {"rpn_classification": entropy.sum() / count, "rpn_box": distance.sum() / count}
