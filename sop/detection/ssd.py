"""SSD: single-shot detection from several feature maps."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sop.checks import Count, Rate, above, at_least, check_fields
from sop.detection import anchors as anchor_boxes
from sop.detection import boxes as box
from sop.detection.backbone import last_stages, whole_sizes
from sop.detection.detections import detect, of_each_class
from sop.detection.losses import smooth_l1
from sop.detection.matching import match, trainable
from sop.detection.sampling import hard_negatives
from sop.errors import UsageError
from sop.layers import BatchNorm
from sop.models.network import Conv
from sop.models.plain import ConvLayer
from sop.ops import at_least_float32


class SSD(nn.Module):
    """Single Shot MultiBox Detector (Liu et al., ECCV 2016).

    Two feature maps of the backbone, and further ones that shrink behind them, each get a 3×3
    convolution for classes and one for boxes. At every position they say for each anchor
    (`sop.detection.anchors.ssd_base`) the logits of background and C classes, and the box in the
    terms of `sop.detection.boxes.encode`. Defaults are the SSD300 of He et al. 2019 (CGD)
    on VOC, but for its `inclusive=True` and `strides=(8, 16, 32, 64, 100, 300)`.

    In training an anchor answers for the object that it overlaps most, by 0.5 or more, and each
    object has at least the anchor that overlaps it most. With P positive anchors in the batch of a
    device the losses are

        classification = (Σ over positives and hard negatives of cross-entropy) / max(P, 1)
        box            = (Σ over positives of smooth L1) / max(P, 1)

    where an image has at most `negatives` times as many hard negatives as positives.

    Attributes:
      features: backbone, called with (images, train).
      num_classes: C, without background.
      base_levels: the last so many stages of the backbone are used.
      extras: (hidden, width, stride) of each map behind them: 1×1 convolution to `hidden`, 3×3 to
        `width`, each with batch norm and ReLU. With stride 1 the 3×3 has no padding.
      extra_momentum: of their batch norms, see `sop.layers.BatchNorm`.
      ratios: of each map's anchors.
      scales: anchors' sizes as parts of the image, see `sop.detection.anchors.ssd_sizes`.
      strides: pixels between the positions of each map; None: image size / map size.
      inclusive: old mmdetection's boxes, whose last pixel is inside, and whole-numbered anchors;
        see `sop.detection.boxes`.
      negatives: hard negatives for each positive.
      score_threshold, overlap, candidates, detections: see `sop.detection.detections.best`.
      dtype: compute type of the convolutions; losses and boxes are float32.
      axis_name: of batch norm.

    Call:
      images: [B, H, W, 3], normalised;
      targets: None, or {'boxes' [B, N, 4], 'labels' int32 [B, N] in 0 … C − 1, 'valid' bool [B, N],
        'crowd' bool [B, N] (optional, such objects are left out)}; boxes are cut off at the image,
        and those without an area are left out;
      train: of batch norms;
      sizes: [B, 2], height and width of what is no padding, which boxes are cut off at.

    Returns:
      with targets {'classification', 'box'}, float32 scalars; without, see
      `sop.detection.detections.best`, each with a leading B.

    Raises:
      UsageError: when traced, where a field does not fit or no position is left of a map.
    """

    features: nn.Module
    num_classes: int
    base_levels: Count = 2
    extras: tuple[tuple[Count, Count, Count], ...] = (
        (256, 512, 2),
        (128, 256, 2),
        (128, 256, 1),
        (128, 256, 1),
    )
    extra_momentum: Rate = 0.01
    ratios: tuple[tuple[Annotated[float, above(0)], ...], ...] = (
        (2.0,),
        (2.0, 3.0),
        (2.0, 3.0),
        (2.0, 3.0),
        (2.0,),
        (2.0,),
    )
    scales: tuple[Rate, Rate, Annotated[float, above(0)]] = (0.1, 0.2, 0.9)
    strides: tuple[Annotated[float, above(0)], ...] | None = None
    inclusive: bool = False
    negatives: Annotated[float, at_least(0)] = 3.0
    score_threshold: Rate = 0.02
    overlap: Rate = 0.45
    candidates: Count = 400
    detections: Count = 200
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        targets: dict[str, jax.Array] | None = None,
        train: bool = False,
        sizes: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        check_fields(self)
        maps = self._maps(images, train)
        base = self._base(images.shape[1:3], maps)
        logits, deltas = zip(
            *(
                self._head(i, x, len(boxes))
                for i, (x, (boxes, *_)) in enumerate(zip(maps, base, strict=True))
            ),
            strict=True,
        )
        logits, deltas = jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)
        anchors = np.concatenate(
            [
                anchor_boxes.grid(b, x.shape[1:3], s, o)
                for x, (b, s, o) in zip(maps, base, strict=True)
            ]
        )
        if sizes is None:
            sizes = whole_sizes(images)
        if targets is not None:
            return losses(
                logits, deltas, anchors, trainable(targets, sizes[:, None], self.inclusive),
                negatives=self.negatives, inclusive=self.inclusive,
            )  # fmt: skip
        one = partial(
            detect,
            starts=jnp.asarray(anchors),
            inclusive=self.inclusive,
            highest=of_each_class,
            threshold=self.score_threshold,
            overlap=self.overlap,
            candidates=self.candidates,
            detections=self.detections,
        )
        found = jax.vmap(one)(logits, deltas[:, :, None], sizes)
        found["boxes"] += box.last_pixel(self.inclusive) * found["valid"][..., None]
        return found

    def _maps(self, images: jax.Array, train: bool) -> list[jax.Array]:
        maps = last_stages(self.features, images, train, self.base_levels)
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            BatchNorm, momentum=self.extra_momentum, dtype=self.dtype, axis_name=self.axis_name
        )
        layer = partial(ConvLayer, conv=conv, norm=norm)
        x = maps[-1]
        for i, (hidden, width, stride) in enumerate(self.extras):
            if stride == 1 and min(x.shape[1:3]) < 3:
                raise UsageError(
                    f"No position is left in map {len(maps)} of SSD for images of "
                    f"{images.shape[1]}×{images.shape[2]} pixels: give larger ones, or fewer "
                    "config.model.detector.extras."
                )
            x = layer(hidden, (1, 1), name=f"extra{i}_reduce")(x, train)
            x = layer(width, (3, 3), stride, int(stride > 1), name=f"extra{i}")(x, train)
            maps.append(x)
        return maps

    def _base(
        self, image: tuple[int, ...], maps: Sequence[jax.Array]
    ) -> list[tuple[np.ndarray, tuple[float, float], float]]:
        """Of each map: anchors at a position, strides, offset in strides."""
        for name, given in (("ratios", self.ratios), ("strides", self.strides)):
            if given is not None and len(given) != len(maps):
                raise UsageError(
                    f"config.model.detector.{name} is for {len(given)} maps, SSD has {len(maps)}: "
                    "give one entry for each stage of base_levels and each of extras."
                )
        pixels = anchor_boxes.ssd_sizes(min(image), len(maps), *self.scales)
        found = []
        for i, (x, size) in enumerate(zip(maps, pixels, strict=True)):
            if self.strides is None:
                strides = tuple(n / m for n, m in zip(image, x.shape[1:3], strict=True))
            else:
                strides = (self.strides[i],) * 2
            boxes = anchor_boxes.ssd_base(*size, self.ratios[i])
            if self.inclusive:
                boxes = anchor_boxes.on_pixels(boxes, strides)
            found.append((boxes, strides, 0.0 if self.inclusive else 0.5))
        return found

    def _head(self, level: int, x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        conv = partial(
            Conv,
            use_bias=True,
            kernel_size=(3, 3),
            padding=1,
            kernel_init=nn.initializers.glorot_uniform(),
            dtype=self.dtype,
        )
        logits = conv(count * (self.num_classes + 1), name=f"classes{level}")(x)
        deltas = conv(count * 4, name=f"boxes{level}")(x)
        return (
            at_least_float32(logits.reshape(x.shape[0], -1, self.num_classes + 1)),
            at_least_float32(deltas.reshape(x.shape[0], -1, 4)),
        )


def losses(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: np.ndarray,
    targets: dict[str, jax.Array],
    *,
    negatives: float = 3.0,
    inclusive: bool = False,
) -> dict[str, jax.Array]:
    """SSD's losses, see there.

    Args:
      logits, deltas: [B, A, C + 1], background first, and [B, A, 4].
      anchors: [A, 4].
      targets: of `trainable`.
    """
    anchors = jnp.asarray(anchors, deltas.dtype)

    def one_image(logits, deltas, boxes, labels, valid):
        overlaps = box.iou(anchors, boxes, inclusive)
        found = match(overlaps, valid, positive=0.5, negative=0.5, least=0.0)
        classes = jnp.where(found.positive, labels[found.index] + 1, 0)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        hard = hard_negatives(entropy, found.positive, found.negative, negatives)
        # Where there is no object, one of an area stands in for it.
        theirs = jnp.where(found.positive[:, None], boxes[found.index], anchors)
        wanted = box.encode(theirs, anchors, box.DEVIATIONS, inclusive)
        distance = smooth_l1(deltas - wanted).sum(-1)
        return (
            jnp.where(found.positive | hard, entropy, 0).sum(),
            jnp.where(found.positive, distance, 0).sum(),
            found.positive.sum(),
        )

    of_images = jax.vmap(one_image)
    rows = (targets["boxes"].astype(deltas.dtype), targets["labels"], targets["valid"])
    classification, distance, positives = of_images(logits, deltas, *rows)
    count = jnp.maximum(positives.sum(), 1)
    return {"classification": classification.sum() / count, "box": distance.sum() / count}
