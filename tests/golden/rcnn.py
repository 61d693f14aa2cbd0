"""What torchvision's Mask R-CNN computes with weights drawn here: losses, gradients, detections.

    python -m tests.golden.rcnn        writes detection/rcnn.npz anew

It needs PyTorch and torchvision; the tests read the numbers alone. All anchors and proposals are
taken, so that no draw stands between the two.
"""

from pathlib import Path

import numpy as np

from tests.golden.network_cases import generator, tensor

FILE = Path(__file__).parent / "detection" / "rcnn.npz"
SALT = "rcnn2"  # with "rcnn", float32 puts a ReLU of the first stage on the other side
CLASSES, WIDTH, HIDDEN, PROPOSALS, DETECTIONS = 3, 16, 32, 200, 10
SIZE = (64, 96)
OVERLAP = 0.5
ANCHORS, SAMPLES = 4000, 400  # more than there are
# Whose gradients are kept.
GRADIENTS = (
    "backbone.body.conv1.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
    "rpn.head.conv.0.0.weight",
    "rpn.head.bbox_pred.weight",
    "roi_heads.box_head.fc7.weight",
    "roi_heads.box_predictor.cls_score.weight",
)
CONFIG = {
    "backbone": "resnet18_cgd",  # fewer blocks; it has no CGD by itself
    "num_classes": CLASSES,
    "detector": {
        "name": "mask_rcnn",
        "width": WIDTH,
        "hidden": HIDDEN,
        "mask_width": WIDTH,
        "least": 0.0,
        "beta": 1 / 9,
        "proposals": PROPOSALS,
        "anchor_samples": ANCHORS,
        "samples": SAMPLES,
        "detections": DETECTIONS,
        "overlap": OVERLAP,
    },
}


def images() -> np.ndarray:
    return generator(SALT, "images").standard_normal((2, *SIZE, 3))


def objects() -> tuple[np.ndarray, np.ndarray]:
    """Boxes [2, 3, 4] and labels [2, 3]."""
    draw = generator(SALT, "objects")
    corner, side = draw.uniform(0, 24, (2, 3, 2)), draw.uniform(12, 40, (2, 3, 2))
    return np.concatenate([corner, corner + side], -1), draw.integers(0, CLASSES, (2, 3))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return tensor(SALT, name, shape).astype(np.float64)


def computed() -> dict[str, np.ndarray]:
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.mask_rcnn import (
        MaskRCNN,
        MaskRCNNHeads,
        MaskRCNNPredictor,
    )
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops.misc import FrozenBatchNorm2d

    body = ResNet(BasicBlock, [1, 2, 2, 1], norm_layer=FrozenBatchNorm2d)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], WIDTH)
    counts = {
        f"rpn_{when}_nms_top_n_{mode}": PROPOSALS
        for when in ("pre", "post")
        for mode in ("train", "test")
    }
    network = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
        ),
        box_head=TwoMLPHead(WIDTH * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, CLASSES + 1),
        mask_head=MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, CLASSES + 1),
        rpn_batch_size_per_image=ANCHORS,
        box_batch_size_per_image=SAMPLES,
        box_detections_per_img=DETECTIONS,
        box_nms_thresh=OVERLAP,
        **counts,
    ).double()
    state = network.state_dict()
    network.load_state_dict({n: torch.tensor(weight(n, tuple(x.shape))) for n, x in state.items()})
    for each in network.parameters():
        each.requires_grad_()
    x = torch.tensor(images().transpose(0, 3, 1, 2))
    boxes, labels = (torch.tensor(each) for each in objects())
    targets = [
        {"boxes": b, "labels": k + 1, "masks": torch.zeros((3, *SIZE), dtype=torch.uint8)}
        for b, k in zip(boxes, labels, strict=True)
    ]
    batch = ImageList(x, [SIZE] * 2)

    assign = network.rpn.assign_targets_to_anchors

    def in_double(*arguments):  # its labels of float32 would make a loss of float32
        labels, theirs = assign(*arguments)
        return [each.double() for each in labels], theirs

    network.rpn.assign_targets_to_anchors = in_double

    def run(targets):
        maps = network.backbone(x)
        proposals, first = network.rpn(batch, maps, targets)
        found, second = network.roi_heads(maps, proposals, batch.image_sizes, targets)
        return found, {**first, **second}

    network.train()
    _, losses = run(targets)
    del losses["loss_mask"]  # its targets are drawn otherwise here
    sum(losses.values()).backward()
    parameters = dict(network.named_parameters())
    network.eval()
    with torch.no_grad():
        found, _ = run(None)
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    return {
        "losses": np.array([losses[name].item() for name in names]),
        **{name: parameters[name].grad.numpy() for name in GRADIENTS},
        **{
            f"{key}{i}": each[key].numpy()
            for i, each in enumerate(found)
            for key in ("boxes", "scores", "labels", "masks")
        },
        "names": np.array([f"{n} {','.join(map(str, s.shape))}" for n, s in state.items()]),
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **computed())
