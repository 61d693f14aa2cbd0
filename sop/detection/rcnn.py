"""Faster R-CNN and Mask R-CNN on feature pyramids: proposals first, then what is in them."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sop.checks import Count, Rate, above, at_least, check_fields, within
from sop.detection import anchors as anchor_boxes
from sop.detection import boxes as box
from sop.detection import roi_heads, rpn
from sop.detection.backbone import last_stages, whole_sizes
from sop.detection.detections import detect, of_all_classes
from sop.detection.fpn import FPN
from sop.detection.matching import trainable
from sop.detection.rcnn_names import TORCH_NAMES

Share = Annotated[float, within(0.0, 1.0)]
Positive = Annotated[float, above(0)]
Sizes = tuple[int, ...]

_SIDE = 7  # of what is cut out of the pyramid for classes and boxes
_MASK_SIDE = 14  # and for masks, which are twice as large


def _strides(image: Sizes, maps: Sequence[Sizes]) -> list[int]:
    """Pixels from one position to the next of maps, each as large as the one before or smaller."""
    found, before, stride = [], image, 1
    for shape in maps:
        stride *= max(round(a / b) for a, b in zip(before, shape, strict=True))
        found.append(stride)
        before = shape
    return found


class FasterRCNN(nn.Module):
    """Faster R-CNN with a feature pyramid (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017).

    A region proposal network says at every position of the pyramid (`sop.detection.fpn.FPN`), for
    each anchor, whether it holds an object and the object's box. The best of these proposals, after
    suppression within each level, are cut out of the pyramid (`sop.detection.roi_align`); two
    layers say for each the logits of background and C classes and, class by class, a better box.

    Training draws `anchor_samples` anchors and `samples` proposals of each image at random,
    positives to a share of ½ and of ¼. With n anchors or proposals drawn from a device's images the
    losses are

        rpn_classification = (1/n) Σ binary cross-entropy,
        rpn_box            = (1/n) Σ over positives of smooth L1, β = 1/9,
        classification     = (1/n) Σ cross-entropy,
        box                = (1/n) Σ over positives of smooth L1 of their class's box.

    An anchor is positive if its IoU with an object is 0.7 or more, or the highest of an object and
    at least `least`; negative below 0.3. A proposal is positive from 0.5 on, else negative; the
    objects themselves are among the proposals. Defaults are those of CGD's authors (He et al. 2019)
    but for their `inclusive=True`.

    Attributes:
      features: backbone, called with (images, train).
      num_classes: C, without background.
      base_levels: the last so many stages of the backbone make the pyramid.
      fixed_statistics: the backbone computes in training as in evaluation, with the running
        statistics it came with.
      width: channels of the pyramid.
      anchor_scale: side of an anchor in strides of its level.
      ratios: of anchors, heights by widths.
      least: see above.
      inclusive: old mmdetection's boxes, whose last pixel is inside (`sop.detection.boxes`); its
        whole-numbered anchors, of which those that reach beyond the image are left out; and its
        assignment: the anchors and proposals that overlap an object most are always its own, the
        latter if their IoU is 0.5 or more.
      proposals: of each level before suppression, and of all levels after.
      proposal_overlap: see `sop.detection.nms.suppress`.
      hidden: width of the two layers.
      anchor_samples, samples: how many are drawn.
      beta: of the smooth L1 of classes' boxes.
      score_threshold, overlap, candidates, detections: see `sop.detection.detections.best`.
      dtype: compute type of convolutions and layers; losses and boxes are float32.

    Call:
      images: [B, H, W, 3], normalised;
      targets: None, or those of `sop.detection.SSD`; it needs the random stream 'sampling';
      train: of the backbone's norms, unless `fixed_statistics`;
      sizes: [B, 2], height and width of what is no padding, which boxes are cut off at.

    Returns:
      with targets the losses, float32 scalars; without, 'boxes' [B, K, 4], 'scores' [B, K],
      'labels' int32 [B, K] and 'valid' bool [B, K], by falling score, zero where not valid.

    Raises:
      UsageError: when traced, where a field does not fit or the backbone has too few stages.
    """

    features: nn.Module
    num_classes: int
    base_levels: Count = 4
    fixed_statistics: bool = True
    width: Count = 256
    anchor_scale: Positive = 8.0
    ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    least: Rate = 0.3
    inclusive: bool = False
    proposals: Count = 2000
    proposal_overlap: Share = 0.7
    hidden: Count = 1024
    anchor_samples: Annotated[int, at_least(2)] = 256
    samples: Annotated[int, at_least(4)] = 512
    beta: Positive = 1.0
    score_threshold: Rate = 0.05
    overlap: Share = 0.5
    candidates: Count = 2000
    detections: Count = 100
    dtype: Any = jnp.float32

    # Sides of the masks of objects in their boxes that are learned from; None: there are none.
    mask_size: ClassVar[int | None] = None
    torch_names: ClassVar = TORCH_NAMES

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        targets: dict[str, jax.Array] | None = None,
        train: bool = False,
        sizes: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        check_fields(self)
        image = images.shape[1:3]
        if sizes is None:
            sizes = whole_sizes(images)
        maps = self._maps(images, train)
        strides = _strides(image, [x.shape[1:3] for x in maps[:-1]])
        strides.append(2 * strides[-1])
        anchors = [
            self._anchors(image, x.shape[1:3], s) for x, s in zip(maps, strides, strict=True)
        ]
        said = rpn.RPNHead(len(self.ratios), self.dtype, name="rpn")(maps)
        propose = partial(
            rpn.propose,
            anchors=anchors,
            count=self.proposals,
            overlap=self.proposal_overlap,
            inclusive=self.inclusive,
        )
        proposals, valid = jax.vmap(propose)(*said, sizes)
        # The coarsest map is for proposals alone.
        cut = partial(roi_heads.crops, maps[:-1], strides=strides[:-1], inclusive=self.inclusive)
        head = roi_heads.BoxHead(self.num_classes, self.hidden, self.dtype, name="box_head")
        mask_head = self._mask_head()

        if targets is None:
            return self._found(proposals, valid, sizes, cut, head, mask_head)
        targets = trainable(targets, sizes[:, None], self.inclusive)
        keys = jax.random.split(self.make_rng("sampling"), (2, len(images)))
        first = rpn.losses(
            keys[0],
            *(jnp.concatenate(levels, 1) for levels in said),
            targets,
            sizes,
            anchors=np.concatenate(anchors),
            samples=self.anchor_samples,
            least=self.least,
            inclusive=self.inclusive,
        )
        return first | self._losses(keys[1], proposals, valid, targets, cut, head, mask_head)

    def _found(self, proposals, valid, sizes, cut, head, mask_head) -> dict[str, jax.Array]:
        """What proposals hold; `cut` takes boxes out of the pyramid for the heads."""
        one = partial(
            detect,
            smallest=roi_heads.SMALLEST,
            inclusive=self.inclusive,
            highest=of_all_classes,
            threshold=self.score_threshold,
            overlap=self.overlap,
            candidates=self.candidates,
            detections=self.detections,
        )
        answers = head(cut(boxes=proposals, size=_SIDE))
        found = jax.vmap(one)(*answers, sizes, proposals, valid)
        if mask_head is not None:
            masks = mask_head(cut(boxes=found["boxes"], size=_MASK_SIDE))
            found["masks"] = jax.nn.sigmoid(roi_heads.of_class(masks, found["labels"] + 1))
        found["boxes"] += box.last_pixel(self.inclusive) * found["valid"][..., None]
        return found

    def _losses(
        self, keys, proposals, valid, targets, cut, head, mask_head
    ) -> dict[str, jax.Array]:
        """Those of the heads, over proposals that are drawn."""
        how = {"inclusive": self.inclusive}
        boxes = targets["boxes"]
        draw = partial(roi_heads.draw, samples=self.samples, **how)
        objects = (boxes, targets["labels"], targets["valid"])
        drawn = jax.vmap(draw)(keys, proposals, valid, *objects)
        answers = head(cut(boxes=drawn.boxes, size=_SIDE))
        losses = roi_heads.losses(*answers, drawn, boxes, beta=self.beta, **how)
        if mask_head is not None:
            first = jax.tree.map(lambda x: x[:, : int(roi_heads.POSITIVES * self.samples)], drawn)
            masks = mask_head(cut(boxes=first.boxes, size=_MASK_SIDE))
            losses |= roi_heads.mask_losses(masks, first, boxes, targets["masks"], **how)
        return losses

    def _maps(self, images: jax.Array, train: bool) -> list[jax.Array]:
        moving = train and not self.fixed_statistics
        found = last_stages(self.features, images, moving, self.base_levels)
        return FPN(self.width, self.dtype, name="fpn")(found)

    def _anchors(self, image: Sizes, shape: Sizes, stride: int) -> np.ndarray:
        base = anchor_boxes.pyramid_base(self.anchor_scale * stride, self.ratios)
        if self.inclusive:
            strides = (stride, stride)
            base = anchor_boxes.on_pixels(base, strides)
        else:  # as torchvision: less than the stride where the last position reaches beyond
            strides = (image[0] // shape[0], image[1] // shape[1])
            base = np.round(base)
        return anchor_boxes.grid(base, shape, strides)

    def _mask_head(self) -> nn.Module | None:
        return None


class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al., ICCV 2017): `FasterRCNN` that says a mask of each object as well.

    A further head, `sop.detection.roi_heads.MaskHead`, sees the positive proposals in training and
    the detections otherwise. Its loss, 'mask', is the mean binary cross-entropy of the positives'
    masks of 28² positions, of their own classes alone.

    Attributes:
      mask_width: channels of that head.

    Call:
      targets: also 'masks', uint8 [B, N, M, M]: each object's mask in its box, 255 where it is.

    Returns:
      also 'mask', or 'masks' [B, K, 28, 28]: the probability of the object at each part of its box.
    """

    mask_width: Count = 256

    mask_size: ClassVar[int | None] = 56

    def _mask_head(self) -> nn.Module:
        return roi_heads.MaskHead(self.num_classes, self.mask_width, self.dtype, name="mask_head")
