"""Twenty steps of training by the original code in float64, and the same steps here.

    python -m tests.golden.trajectories [NAME …]          prints how far apart they end
    python -m tests.golden.trajectories --originals=DIR   takes the originals' steps anew

The second needs PyTorch and NumPy alone; DIR holds the originals' repositories under their own
names. Weights, images and labels are drawn from their names, so that NAME.npz holds results only:

    losses   [20], each before its step
    logits   [8, 10] after the last step, in evaluation mode
    shapes   JSON, the original's name of every tensor → its shape
    end      [tensors, 48], the `sketch` of each parameter and running statistic after the last step
    largest  [tensors], their largest entries
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "trajectories"
STEPS, BATCH, CLASSES = 20, 8, 10
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
BUCKETS = 48
TOLERANCE = 1e-8


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the steps, with its own rule for the classifier, the original's `fc`.

    Attributes:
      steps: number of them.
      only: it alone is trained; the statistics of batch norms follow all the same.
      factor: of its learning rate.
      weight_decay: of its parameters.
    """

    steps: int = STEPS
    only: bool = False
    factor: float = 1.0
    weight_decay: float = WEIGHT_DECAY


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
      original: folder of the originals → PyTorch module with `CLASSES` classes.
      config: config.model of the same network here, without `num_classes`.
      size: height and width of the images.
      learning_rate: of every step; so small that rounding errors do not grow from step to step.
      stages: one after the other; each goes on with the momentum of the one before.
    """

    original: Callable[[Path], Any]
    config: dict[str, Any]
    size: int
    learning_rate: float
    stages: tuple[Stage, ...] = (Stage(),)


def mpncov(originals):
    module = import_from(originals / "fast-MPN-COV/src", "network.mpncovresnet", "src")
    # It imports a module, but gets the class of the same name that hides it in its package.
    module.MPNCOV = sys.modules["src.representation.MPNCOV"]
    block = sys.modules["src.network.resnet"].BasicBlock
    return module.MPNCOVResNet(block, [2, 2, 2, 2], num_classes=CLASSES)


def gsop(originals):
    import torch

    folder = originals / "Global-Second-order-Pooling-Convolutional-Networks/torchvision/models"
    network = import_from(folder, "resnet", "gsop").resnet50(
        att_position=["001", "0001", "000001", "001"], GSoP_mode=1, num_classes=CLASSES
    )
    # Its window of 14×14 is the last map of images of 224×224.
    network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    return network


def gfgp(originals):
    # The CUDA extension does not run on a CPU.
    name = "gfgp.modules.maxentpool_cuda.maxentpool2d"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].maxentpool2d_func = types.SimpleNamespace(apply=max_entropy_pool)
    module = import_from(originals / "GFGP/models", "resnet", "gfgp")
    return module.resnet18(ptype="max_ent", num_classes=CLASSES)


def cgd(originals):
    folder = originals / "Compact-Global-Descriptor/classification/models/cifar"
    return import_from(folder, "preresnet", "cgd").preresnet(depth=8, num_classes=CLASSES)


CASES = {
    "mpncov_resnet18": Case(mpncov, {"backbone": "resnet18", "representation": "mpncov"}, 48, 0.01),
    # As fast MPN-COV fine-tunes in two stages.
    "mpncov_resnet18_stages": Case(
        mpncov,
        {"backbone": "resnet18", "representation": "mpncov"},
        48,
        0.001,
        (Stage(5, True, 20.0, 0.0), Stage(15, False, 5.0, 0.0)),
    ),
    "gsop_resnet50": Case(gsop, {"backbone": "resnet50", "attention": "gsop"}, 48, 3e-5),
    "gfgp_resnet18": Case(gfgp, {"backbone": "resnet18", "pool": "gfgp"}, 48, 0.001),
    "cgd_preresnet8": Case(cgd, {"backbone": "preresnet8_cifar", "attention": "cgd"}, 32, 0.01),
}


def import_from(folder: Path, module: str, package: str):
    """A module of an original, in a package of this name: several originals have one `models`."""
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(folder)]
    return importlib.import_module(f"{package}.{module}")


def max_entropy_pool(x, lam, window, strides, padding, ceil_mode):
    """Σᵢ xᵢ softmax(λx)ᵢ over the positions i of each window that lie in the image.

    x: [B, C, H, W], lam: [B, C, 1, 1] → [B, C, H', W'].
    """
    import torch
    from torch.nn import functional

    assert not ceil_mode
    sides = zip(x.shape[2:], window, strides, padding, strict=True)
    shape = [(size + 2 * p - w) // s + 1 for size, w, s, p in sides]

    def windows(images):
        columns = functional.unfold(images, window, padding=padding, stride=strides)
        return columns.reshape(*x.shape[:2], -1, columns.shape[-1])

    values, inside = windows(x), windows(torch.ones_like(x)) > 0
    weights = (lam * values).masked_fill(~inside, -torch.inf).softmax(2)
    return (weights * values).sum(2).reshape(*x.shape[:2], *shape)


def stream(*names) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32("/".join(map(str, names)).encode())))


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor starts from, rounded to float32 as `convert` rounds it."""
    draw, last = stream(case, name), name.rpartition(".")[2]
    if last == "running_var" or (last == "weight" and len(shape) == 1):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) > 1 and "bias" not in last:
        values = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * draw.standard_normal(shape)
    return values.astype(np.float32)


def batch(case: str, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, 3] and labels [B]; step `STEPS` is what the logits are computed for."""
    draw, size = stream(case, "batch", step), CASES[case].size
    return draw.standard_normal((BATCH, size, size, 3)), draw.integers(0, CLASSES, BATCH)


def sketch(name: str, values: np.ndarray) -> np.ndarray:
    """The entries padded with zeros, or where there are more than `BUCKETS`, their count sketch.

    Each entry is added to a random bucket by a random sign. A difference in one entry is as large
    in its bucket; those of k entries in one bucket add up as √k of them, give or take chance.
    """
    values = values.ravel()
    if values.size <= BUCKETS:
        return np.pad(values, (0, BUCKETS - values.size))
    drawn = stream("sketch", name).integers(0, 2 * BUCKETS, values.size)
    return np.bincount(drawn // 2, (drawn % 2 * 2 - 1) * values, BUCKETS)


def train_original(name: str, originals: Path) -> dict[str, np.ndarray]:
    """What NAME.npz holds."""
    import torch
    from torch.nn import functional

    case = CASES[name]
    torch.set_num_threads(1)
    # Some tensors inside the originals have the default type whatever the network's.
    torch.set_default_dtype(torch.float64)
    network = case.original(originals).double()
    start = {
        key: torch.tensor(weight(name, key, tuple(value.shape)))
        for key, value in network.state_dict().items()
        if value.is_floating_point()
    }
    network.load_state_dict(start, strict=False)
    is_classifier = {key: key.startswith("fc.") for key, _ in network.named_parameters()}

    def optimizer(stage, before):
        groups = [], []
        for key, value in network.named_parameters():
            groups[is_classifier[key]].append(
                value.requires_grad_(is_classifier[key] or not stage.only)
            )
        rate, decay = case.learning_rate, WEIGHT_DECAY
        sgd = torch.optim.SGD(
            [
                {"params": groups[False], "lr": rate, "weight_decay": decay},
                {
                    "params": groups[True],
                    "lr": rate * stage.factor,
                    "weight_decay": stage.weight_decay,
                },
            ],
            momentum=MOMENTUM,
        )
        if before is not None:
            sgd.load_state_dict({**sgd.state_dict(), "state": before.state_dict()["state"]})
        return sgd

    def run(step):
        images, labels = batch(name, step)
        logits = network(torch.tensor(images.transpose(0, 3, 1, 2)))
        return logits, functional.cross_entropy(logits, torch.tensor(labels))

    losses, sgd = [], None
    for stage in case.stages:
        sgd = optimizer(stage, sgd)
        for _ in range(stage.steps):
            _, loss = run(len(losses))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    network.eval()
    logits, _ = run(STEPS)
    unread = {key for key, value in network.named_parameters() if value.grad is None}
    state = network.state_dict()
    end = {key: state[key].numpy() for key in start if key not in unread}
    return {
        "losses": np.array(losses),
        "logits": logits.detach().numpy(),
        "shapes": np.array(json.dumps({key: value.shape for key, value in end.items()})),
        "end": np.stack([sketch(key, value) for key, value in end.items()]),
        "largest": np.array([np.abs(value).max() for value in end.values()]),
    }


def train(name: str, shapes: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Losses, logits and final state dict of the same steps here, on one device."""
    # Where the originals run there need be no JAX.
    import jax

    from sop.config import get_config
    from sop.models import create_model
    from sop.torch_weights import convert, to_state_dict
    from sop.training.optimizer import keep_momentum, make_optimizer
    from sop.training.state import init_state
    from sop.training.step import (
        data_parallel,
        make_mesh,
        make_train_step,
        replicated,
        to_devices,
    )

    config = {**CASES[name].config, "num_classes": CLASSES}
    variables = convert({key: weight(name, key, shape) for key, shape in shapes.items()}, config)
    variables = jax.tree.map(np.float64, variables)
    with jax.enable_x64(True):
        model = create_model(config, dtype=np.float64)
        mesh = make_mesh(jax.devices()[:1])
        state, losses = None, []
        for stage in CASES[name].stages:
            options = get_config().optimizer
            options.update(
                momentum=MOMENTUM,
                weight_decay=WEIGHT_DECAY,
                frozen=("^features/", "^representation/") if stage.only else (),
                lr_multipliers=(("^classifier/", stage.factor),),
                weight_decays=(("^classifier/", stage.weight_decay),),
            )
            tx = make_optimizer(options, lambda _: CASES[name].learning_rate, variables["params"])
            step = data_parallel(make_train_step(model, tx, normalize=lambda images: images), mesh)
            if state is None:
                # Where it stays, so that the second step needs no program of its own.
                state = jax.device_put(init_state(variables, tx), replicated(mesh))
            else:
                momentum = keep_momentum(state.opt_state, tx.init(state.params))
                state = state.replace(opt_state=momentum)
            for _ in range(stage.steps):
                images, labels = batch(name, len(losses))
                state, metrics = step(state, to_devices(mesh, {"image": images, "label": labels}))
                losses.append(float(metrics["loss"]))
        images, _ = batch(name, STEPS)
        logits = jax.jit(model.apply, static_argnames="train")(state.variables, images, train=False)
        end = to_state_dict(jax.device_get(state.variables), config)
        return np.array(losses), np.asarray(logits), end


def errors(name: str) -> dict[str, float]:
    """Largest errors of this project's steps, by what they are errors of.

    Of a loss relative to that loss, of the logits to the largest logit, of a tensor's sketch to the
    tensor's largest entry.
    """
    golden = np.load(FOLDER / f"{name}.npz")
    shapes = json.loads(str(golden["shapes"]))
    losses, logits, end = train(name, shapes)
    assert {key: list(value.shape) for key, value in end.items()} == shapes
    found = {
        "loss": np.abs(losses / golden["losses"] - 1).max(),
        "parameters": 0.0,
        "means": 0.0,
        "variances": 0.0,
        "logits": np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max(),
    }
    groups = {"running_mean": "means", "running_var": "variances"}
    for key, theirs, largest in zip(shapes, golden["end"], golden["largest"], strict=True):
        group = groups.get(key.rpartition(".")[2], "parameters")
        found[group] = max(found[group], np.abs(sketch(key, end[key]) - theirs).max() / largest)
    return {group: float(error) for group, error in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="NAME")
    parser.add_argument("--originals", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.originals:
        FOLDER.mkdir(exist_ok=True)
        for name in arguments.names:
            np.savez_compressed(FOLDER / name, **train_original(name, arguments.originals))
        return
    print(f"{'case':22} {'rate':>6} loss    parameters means   variances logits  seconds")
    for name in arguments.names:
        start = time.perf_counter()
        found = "  ".join(f"{error:7.1e}" for error in errors(name).values())
        seconds = time.perf_counter() - start
        print(f"{name:22} {CASES[name].learning_rate:6} {found} {seconds:6.0f}", flush=True)


if __name__ == "__main__":
    main()
