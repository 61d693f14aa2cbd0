"""What torchvision computes of boxes, matches, suppression, losses of SSD and of masks, on arrays.

    python -m tests.golden.detection        writes detection/boxes.npz anew

It needs PyTorch and torchvision; the tests read the numbers alone.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "detection" / "boxes.npz"
CLASSES, ANCHORS, OBJECTS, IMAGES = 5, 60, 4, 3
SUPPRESSED = 300
STRIDE = 8
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def boxes(draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes in an image of 100×100."""
    corner, size = draw.uniform(0, 70, (*shape, 2)), draw.uniform(4, 30, (*shape, 2))
    return np.concatenate([corner, corner + size], -1)


def arrays() -> dict[str, np.ndarray]:
    """What goes in, float64."""
    draw = np.random.default_rng(0)
    return {
        "anchors": boxes(draw, ANCHORS),
        "boxes": boxes(draw, IMAGES, OBJECTS),
        "labels": draw.integers(0, CLASSES, (IMAGES, OBJECTS)),
        "logits": draw.standard_normal((IMAGES, ANCHORS, CLASSES + 1)),
        "deltas": 3 * draw.standard_normal((IMAGES, ANCHORS, 4)),
        "many": boxes(draw, SUPPRESSED),
        "scores": draw.uniform(0, 1, SUPPRESSED),
        "classes": draw.integers(0, 3, SUPPRESSED),
        "map": draw.standard_normal((12, 16, 3)),
        # Some reach beyond the map, which has a position every 8 pixels, some are below one.
        "regions": boxes(draw, 20) * np.repeat([0.05, 1, 1.7, 0.6], 5)[:, None],
        # Of four proposals, each for the object of `matched`, whose class is in `mask_classes`.
        "mask_logits": draw.standard_normal((4, 28, 28, CLASSES + 1)),
        "mask_classes": np.array([3, 1]),
        "matched": np.array([0, 1, 0, 1]),
        "proposals": np.array(
            [[8.0, 4, 40, 44], [60, 70, 90, 95], [60, 8, 92, 40], [8, 5, 90, 40]]
        ),
    }


def masks() -> np.ndarray:
    """Of two objects as large as the image of 112×112: the left half, and the lower one.

    All proposals lie on one side of an edge, where a mask in its box, as ours, and one of the
    image, interpolated, as torchvision's, give the same targets.
    """
    found = np.zeros((2, 112, 112), np.uint8)
    found[0, :, :56] = found[1, 56:] = 1
    return found


def computed() -> dict[str, np.ndarray]:
    import torch
    from torchvision.models.detection import _utils
    from torchvision.models.detection.roi_heads import maskrcnn_loss
    from torchvision.models.detection.ssd import SSD
    from torchvision.ops import batched_nms, box_iou, roi_align

    given = {name: torch.tensor(value) for name, value in arrays().items()}
    anchors, objects = given["anchors"], given["boxes"][0]
    coder = _utils.BoxCoder(tuple(1 / deviation for deviation in DEVIATIONS))
    overlaps = [box_iou(each, anchors) for each in given["boxes"]]
    high, low = 0.7, 0.3
    rpn = _utils.Matcher(high, low, allow_low_quality_matches=True)
    roi = _utils.Matcher(0.5, 0.5)
    ssd = _utils.SSDMatcher(0.5)

    # Its losses use the coder, the ratio of negatives and nothing else of it.
    network = SSD.__new__(SSD)
    torch.nn.Module.__init__(network)
    network.box_coder, network.neg_to_pos_ratio = coder, 3
    said = {
        "cls_logits": given["logits"].clone().requires_grad_(),
        "bbox_regression": given["deltas"].clone().requires_grad_(),
    }
    targets = [
        {"boxes": b, "labels": label + 1}
        for b, label in zip(given["boxes"], given["labels"], strict=True)
    ]
    matches = [ssd(each) for each in overlaps]
    losses = network.compute_loss(targets, said, [anchors] * IMAGES, matches)
    sum(losses.values()).backward()
    map_, regions = given["map"].permute(2, 0, 1)[None].requires_grad_(), [given["regions"]]
    cut, cut_aligned = (
        roi_align(map_, regions, 5, 1 / STRIDE, 2, aligned) for aligned in (False, True)
    )
    (cut**2).sum().backward()
    mask_logits = given["mask_logits"].permute(0, 3, 1, 2).requires_grad_()
    mask_loss = maskrcnn_loss(
        mask_logits,
        [given["proposals"]],
        [torch.tensor(masks())],
        [given["mask_classes"]],
        [given["matched"]],
    )
    mask_loss.backward()
    kept = batched_nms(given["many"], given["scores"], given["classes"], 0.4)
    return {
        "iou": overlaps[0].T.numpy(),
        "encoded": coder.encode_single(objects, anchors[:OBJECTS]).numpy(),
        "decoded": coder.decode_single(given["deltas"][0], anchors).numpy(),
        "rpn": rpn(overlaps[0]).numpy(),
        "roi": roi(overlaps[0]).numpy(),
        "ssd": np.stack([each.numpy() for each in matches]),
        "kept": kept.numpy(),
        "losses": np.array([losses["classification"].item(), losses["bbox_regression"].item()]),
        "logits_gradient": said["cls_logits"].grad.numpy(),
        "deltas_gradient": said["bbox_regression"].grad.numpy(),
        "cut": cut.detach().numpy(),
        "cut_aligned": cut_aligned.detach().numpy(),
        "map_gradient": map_.grad.numpy(),
        "mask_loss": np.array(mask_loss.item()),
        "mask_gradient": mask_logits.grad.permute(0, 2, 3, 1).numpy(),
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **computed())
