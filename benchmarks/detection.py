"""Suppression, RoIAlign and whole R-CNNs beside torchvision's own, in turns.

`python benchmarks/detection.py` prints a markdown table. Without torchvision ours is timed alone.
Both have the same random weights, images and boxes. A training step is losses and gradients of all
parameters, with batch norms that stand still in both. A ratio is the median of the ratios of
neighbours, its spread their quartiles. Of each image `--objects` are known; torchvision's mask head
sees the proposals that hold one, ours always a quarter of those that are drawn. `--profile` adds
the shares of detection's own parts in the operations of ours.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from layers import interleaved, keep_freed_memory
from profiles import operations
from tables import RATIO, print_header, print_row, quartiles

from sop.detection import create_detector
from sop.detection.nms import suppress
from sop.detection.roi_align import levels, roi_align
from sop.torch_weights import convert

PARTS = ("suppression", "roi_align", "matching")  # as `jax.named_scope` has them
STRIDES = (4, 8, 16, 32)
COLUMNS = {
    "what": "{}",
    "input": "{}",
    "ms": "{:.1f}",
    "their ms": "{:.1f}",
    "ratio": RATIO,
    "images/s": "{:.2f}",
    **{part: "{:.1%}" for part in PARTS},
}
Runs = list[Callable[[], object]]


class Ours(NamedTuple):
    """A compiled function, run to its end when called."""

    compiled: Callable
    arguments: tuple

    def __call__(self):
        jax.block_until_ready(self.compiled(*self.arguments))

    def shares(self) -> dict[str, float]:
        """Of each part in the time of all operations."""
        # A loop's own time is that of the operations in it.
        found = [
            (ms, source)
            for ms, name, source in operations(self.compiled, self, 3)
            if not name.startswith(("while", "conditional", "call"))
        ]
        total = sum(ms for ms, _ in found)
        return {part: sum(ms for ms, source in found if part in source) / total for part in PARTS}


def some_boxes(count: int, height: int, width: int) -> np.ndarray:
    """float32 [count, 4] in the image, of sides from e² to e⁶ pixels."""
    draw = np.random.default_rng(0)
    corner = draw.uniform(0, (width, height), (count, 2))
    far = np.minimum(corner + np.exp(draw.uniform(2, 6, (count, 2))), (width, height))
    return np.concatenate([corner, np.maximum(far, corner + 1)], 1).astype(np.float32)


def suppression(torch, count: int) -> Runs:
    boxes = some_boxes(count, 800, 1344)
    scores = np.linspace(1, 0, count, dtype=np.float32)
    ours = jax.jit(partial(suppress, threshold=0.7))
    runs: Runs = [Ours(ours, (jnp.asarray(boxes), jnp.ones(count, bool)))]
    if torch:
        from torchvision.ops import nms

        theirs = torch.tensor(boxes), torch.tensor(scores)
        runs.append(lambda: nms(*theirs, 0.7))
    return runs


def cutting(torch, count: int, gradient: bool) -> Runs:
    """7² bins of boxes in a pyramid of 256 channels, or their gradient by it."""
    boxes = some_boxes(count, 800, 1344)
    draw = np.random.default_rng(1)
    maps = [draw.standard_normal((800 // s, 1344 // s, 256), dtype=np.float32) for s in STRIDES]

    def cut(maps, boxes):
        return roi_align(maps, boxes, levels(boxes, 4, len(STRIDES)), STRIDES, 7)

    def total(maps, boxes):
        return (cut(maps, boxes) ** 2).sum()

    ours = jax.jit(jax.grad(total) if gradient else cut)
    runs: Runs = [Ours(ours, ([jnp.asarray(x) for x in maps], jnp.asarray(boxes)))]
    if torch:
        from torchvision.ops import MultiScaleRoIAlign

        pool = MultiScaleRoIAlign([str(level) for level in range(4)], 7, 2)
        tensors = {
            str(level): torch.tensor(x.transpose(2, 0, 1)[None].copy(), requires_grad=gradient)
            for level, x in enumerate(maps)
        }
        theirs = [torch.tensor(boxes)]

        def run():
            found = pool(tensors, theirs, [(800, 1344)])
            if gradient:
                (found**2).sum().backward()
                for each in tensors.values():
                    each.grad = None

        runs.append(run)
    return runs


def network(torch, name: str, size: tuple[int, int], batch: int, objects: int, train: bool) -> Runs:
    """A detector on ResNet-50: what it finds, or the gradients of its losses."""
    config = {
        "backbone": "resnet50",
        "num_classes": 90,
        "detector": {"name": name, "least": 0.0, "beta": 1 / 9, "proposals": 1000},
    }
    detector = create_detector(config)
    draw = np.random.default_rng(0)
    images = draw.standard_normal((batch, *size, 3), dtype=np.float32)
    boxes = np.stack([some_boxes(objects, *size)] * batch)
    state, theirs = None, None
    if torch:
        theirs, state = their_network(torch, name, images, boxes, train)
    key = jax.random.key(0)
    if state is None:
        variables = jax.jit(detector.init)({"params": key, "sampling": key}, images)
    else:
        variables = jax.tree.map(jnp.asarray, convert(state, config))
    targets = {
        "boxes": jnp.asarray(boxes),
        "labels": jnp.zeros((batch, objects), jnp.int32),
        "valid": jnp.ones((batch, objects), bool),
        "masks": jnp.full((batch, objects, 56, 56), 255, jnp.uint8),
    }

    def total(params, images):
        given = {**variables, "params": params}
        losses, _ = detector.apply(
            given, images, targets, train=True, mutable=["batch_stats"], rngs={"sampling": key}
        )
        return sum(losses.values())

    ours = jax.jit(jax.grad(total) if train else lambda p, x: detector.apply(variables, x))
    given = variables["params"], jnp.asarray(images)
    runs: Runs = [Ours(ours.lower(*given).compile(), given)]
    return [*runs, theirs] if theirs else runs


def their_network(torch, name, images, boxes, train):
    """torchvision's detector behind its resizing, as a function to time, and its state dict."""
    from torchvision.models import detection
    from torchvision.models.detection.image_list import ImageList

    torch.manual_seed(0)
    make = {"faster_rcnn": "fasterrcnn_resnet50_fpn", "mask_rcnn": "maskrcnn_resnet50_fpn"}[name]
    counts = {
        f"rpn_{when}_nms_top_n_{mode}": 1000
        for when in ("pre", "post")
        for mode in ("train", "test")
    }
    none = {"weights": None, "weights_backbone": None, "trainable_backbone_layers": 5}
    theirs = getattr(detection, make)(**none, **counts)
    # Frozen, as in the published ones, which torchvision makes for pretrained backbones alone.
    batch_norms = [m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    theirs.train(train)
    for each in batch_norms:
        each.eval()
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    sizes = [tuple(images.shape[1:3])] * len(images)
    targets = None
    if train:
        targets = [
            {
                "boxes": torch.tensor(each),
                "labels": torch.ones(len(each), dtype=torch.int64),
                "masks": torch.ones((len(each), *images.shape[1:3]), dtype=torch.uint8),
            }
            for each in boxes
        ]

    def run():
        with torch.set_grad_enabled(train):
            maps = theirs.backbone(x)
            batch = ImageList(x, sizes)
            proposals, first = theirs.rpn(batch, maps, targets)
            _, second = theirs.roi_heads(maps, proposals, sizes, targets)
        if train:
            sum([*first.values(), *second.values()]).backward()
            theirs.zero_grad(set_to_none=True)

    return run, theirs.state_dict()


def cases(torch, arguments):
    """(what, input, images in it, a function of nothing to the runs)"""
    size, batch = (arguments.height, arguments.width), arguments.batch
    shown = f"{batch}×{size[0]}×{size[1]}"
    yield "suppression", "2000 boxes", None, lambda: suppression(torch, 2000)
    yield "RoIAlign", "512 boxes, 256 channels", None, lambda: cutting(torch, 512, False)
    yield "RoIAlign, both", "512 boxes, 256 channels", None, lambda: cutting(torch, 512, True)
    for name in ("faster_rcnn", "mask_rcnn"):
        for what, train in (("inference", False), ("training", True)):
            runs = partial(network, torch, name, size, batch, arguments.objects, train)
            yield f"{name}, {what}", shown, batch, runs


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1, help="of the networks")
    parser.add_argument("--objects", type=int, default=8, help="known of each image")
    parser.add_argument("--profile", action="store_true", help="shares of detection's own parts")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    return parser


def main():
    arguments = make_parser().parse_args()
    keep_freed_memory()
    try:
        import torch
        import torchvision

        about = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    except ImportError:
        torch, about = None, "without torchvision"
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {about}, float32")
    print_header(COLUMNS)
    for what, given, images, make in cases(torch, arguments):
        if arguments.only not in what:
            continue
        runs = make()
        seconds = interleaved(runs, arguments.repetitions)
        row = {"what": what, "input": given, "ms": float(np.median(seconds[0]) * 1e3)}
        if images is not None:
            row["images/s"] = images / float(np.median(seconds[0]))
        if len(seconds) > 1:
            row["their ms"] = float(np.median(seconds[1]) * 1e3)
            row["ratio"] = quartiles(seconds[1] / seconds[0])
        if arguments.profile and images is not None:
            row |= runs[0].shares()
        print_row(COLUMNS, row)


if __name__ == "__main__":
    main()
