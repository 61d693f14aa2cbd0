"""What the study compares: parts, each a few methods of one small network on one data set.

  DATA_heads, DATA_attention, DATA_pooling  on typefaces, textures or mnist_5k
  mnist_5k_sizes     three heads, on training sets of 100 to 4,000 images
  digits_finetuning  B-CNN on 20 images, from weights and from scratch, in one stage and in two

Each method tries the same learning rates on a validation split, heads also two for their
classifiers; what is best there is trained with five seeds and evaluated on the test split, after
the last epoch.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sop.sweep.grid import Grid, name_of
from sop.sweep.plan import Sweep
from sop.sweep.tuning import Tuning

RATES = Grid("optimizer.learning_rate", ("0.006", "0.02", "0.06", "0.2", "0.6", "1.8"))
# Of a head's classifier: one of a vector of length 1 needs a larger rate than what is below it.
FACTOR = 30.0
FACTORS = Grid(
    "optimizer.lr_multipliers",
    tuple(f"(('^classifier/', {factor}),)" for factor in (1.0, FACTOR)),
)
SEEDS = 5


class Part(NamedTuple):
    """Runs that are compared.

    Attributes:
      sweeps: the runs that are evaluated on the test split.
      tuning: of all of them.
    """

    sweeps: tuple[Sweep, ...]
    tuning: Tuning

    def methods(self) -> dict[str, dict[str, str]]:
        """Name → settings, of all sweeps."""
        return {name: each for sweep in self.sweeps for name, each in sweep.methods().items()}

    def rates(self) -> list[float]:
        """The learning rates that are tried."""
        (found,) = (grid for grid in self.tuning.grids if grid.key == RATES.key)
        return list(map(float, found.values))

    def size(self) -> int:
        """The number of runs, those of the tuning among them."""
        methods = self.methods()
        tuned = set(map(self.tuning.method, methods.values()))
        tried = math.prod(len(grid.values) for grid in self.tuning.grids)
        return len(tuned) * tried + sum(sweep.seeds * len(sweep.methods()) for sweep in self.sweeps)


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set and the recipe on it.

    Attributes:
      config: FILE.py:EXPERIMENT.
      changes: of the recipe.
      tuning: splits to train and to choose on.
      classes: how many.
      rates: that its methods try.
    """

    config: str
    changes: Mapping[str, str]
    tuning: tuple[str, str]
    classes: int
    rates: Grid = RATES

    def sweep(self, folder: Path, grids: tuple[Grid, ...], changes: Mapping[str, str]) -> Sweep:
        """The runs on it of all combinations of the grids, which go before the changes."""
        changed = {**self.changes, **changes, "input.eval_split": "test"}
        free = changed.keys() - {grid.key for grid in grids}
        flags = tuple(f"--config.{key}={value}" for key, value in changed.items() if key in free)
        return Sweep(self.config, flags, grids, SEEDS, folder)


def _epochs(number: int) -> dict[str, str]:
    return {"num_epochs": str(number), "eval_every_epochs": str(number)}


def _crops(size: int, epochs: int) -> dict[str, str]:
    return {
        "input.train_transforms": f"pad_crop({size}, 0)",
        "input.eval_transforms": f"center_crop({size})",
        **_epochs(epochs),
    }


DATA = {
    "typefaces": Data("configs/typefaces.py:gavp", _crops(16, 12), ("train", "validation"), 22),
    "textures": Data("configs/textures.py:gavp", _crops(16, 3), ("train", "validation"), 3),
    "mnist_5k": Data(
        "configs/mnist_5k.py:gavp",
        {
            "input.train_split": "train[:1000]",
            "input.train_transforms": "resize_short(16) | pad_crop(16, 1)",
            "input.eval_transforms": "resize_short(16)",
            **_epochs(10),
        },
        ("train[:1000]", "train[3000:]"),
        10,
    ),
}

_MEAN, _BCNN = "{'name': 'gavp'}", "{'name': 'bcnn'}"
_COVARIANCE = "'name': 'mpncov', 'reduction': 0, 'dropout': 0.0"
_ISQRT1, _ISQRT3, _ISQRT5 = (f"{{{_COVARIANCE}, 'num_iters': {n}}}" for n in (1, 3, 5))


def heads(classes: int) -> Grid:
    """On the network's own 64 channels, without dropout: what differs is the head alone.

    The hidden layer of the second has as many parameters, with its classifier, as the classifier on
    the 64·65/2 entries of a covariance.
    """
    hidden = round(64 * 65 / 2 * classes / (65 + classes))
    values = (
        _MEAN,
        f"{{'name': 'gavp', 'hidden': {hidden}}}",
        _BCNN,
        "{'name': 'compact_bilinear', 'projected_dim': 2048}",
        *(f"{{{_COVARIANCE}, 'normalization': '{name}'}}" for name in ("none", "eigh")),
        *(_ISQRT1, _ISQRT3, _ISQRT5),
    )
    return Grid("model.representation", values)


def attentions(classes: int) -> Grid:
    """In every block, as published, and GSoP in that of the last stage alone; at 32 channels."""
    gsop = "'name': 'gsop', 'dim': 32"
    gsops = (
        f"{{{gsop}, 'manner': '{manner}'}}" for manner in ("channel", "position", "fusion_avg")
    )
    late = f"{{{gsop}, 'manner': 'channel', 'blocks': '0 0 1'}}"
    others = (f"{{'name': '{name}'}}" for name in ("none", "se", "eca", "cgd", "cgd_toy"))
    return Grid("model.attention", (*others, *gsops, late))


def poolings(classes: int) -> Grid:
    """In the place of strided convolutions; None keeps these."""
    return Grid("model.pool.name", ("None", "max", "average", "max_entropy", "gfgp"))


METHODS = {"heads": heads, "attention": attentions, "pooling": poolings}


def _compare(data: Data, kind: str, folder: Path) -> Part:
    """The last stage has stride 1, as MPN-COV and GSoP ask for, whatever the method is; but where
    the pooling itself is compared.
    """
    stride = {"model.last_stride": "2" if kind == "pooling" else "1"}
    sweep = data.sweep(folder, (METHODS[kind](data.classes),), stride)
    tuned = (data.rates, FACTORS) if kind == "heads" else (data.rates,)
    return Part((sweep,), Tuning(tuned, *data.tuning))


# Of the two parts below, whose epochs have a step or two.
_ONE_CHECKPOINT = {"checkpoint.every_steps": "1000"}
# Training images of each class. All runs see 12,000 images, whatever the number of different ones.
SIZES = (10, 30, 100, 400)


def _sizes(folder: Path) -> Part:
    """Rates are tuned with 100 images of each class, and serve all sizes."""
    data = DATA["mnist_5k"]
    methods = Grid("model.representation", (_MEAN, _BCNN, _ISQRT5))

    def epochs(size: int) -> dict[str, str]:
        return _epochs(12_000 // (size * data.classes))

    def sweep(size: int) -> Sweep:
        split = Grid("input.train_split", (f"train[:{size * data.classes}]",))
        changes = {"model.last_stride": "1", **_ONE_CHECKPOINT, **epochs(size)}
        return data.sweep(folder, (methods, split), changes)

    return Part(tuple(map(sweep, SIZES)), Tuning((data.rates, FACTORS), *data.tuning, epochs(100)))


_WEIGHTS = {"from scratch": "", "fine-tuned": "runs/digits_gavp04"}
_STAGES = {
    "one stage": "()",
    "two stages": "({'num_epochs': 20, 'optimizer': {'frozen': ('^features/',)}},"
    " {'num_epochs': 20})",
}
# Methods of digits_finetuning → what a reader calls them.
TITLES = {
    name_of({"init_from": source, "stages": stages}): f"{start}, {number}"
    for start, source in _WEIGHTS.items()
    for number, stages in _STAGES.items()
}


def _finetuning(folder: Path) -> Part:
    """The first of two stages trains the classifier alone; both ways take 40 epochs."""
    changes = {
        "input.train_split": "train[:20]",
        "batch_size": "20",
        **_ONE_CHECKPOINT,
        **_epochs(40),
    }
    rates = RATES._replace(values=RATES.values[:-1])
    data = Data("configs/digits.py:bcnn59", changes, ("train[:20]", "train[20:]"), 5, rates)
    grids = (
        Grid("init_from", tuple(_WEIGHTS.values())),
        Grid("stages", tuple(_STAGES.values())),
    )
    return Part((data.sweep(folder, grids, {}),), Tuning((data.rates, FACTORS), *data.tuning))


_OTHERS = {"mnist_5k_sizes": _sizes, "digits_finetuning": _finetuning}
PARTS = [*(f"{data}_{kind}" for data in DATA for kind in METHODS), *_OTHERS]


def plan(part: str, workdir: Path) -> Part:
    """The runs of a part, in a folder of that name."""
    if part in _OTHERS:
        return _OTHERS[part](workdir / part)
    data, _, kind = part.rpartition("_")
    return _compare(DATA[data], kind, workdir / part)
