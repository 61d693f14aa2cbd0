"""Every key of a config, once: default, type, meaning, and when it may change."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sop.checks import Condition, Count, Pattern, Rate, describe, within

# Bounds that no run meets: what lies beyond them is a slip of the keyboard.
_Epochs = Annotated[float, within(0.0, 1e6)]
_LearningRate = Annotated[float, within(1e-12, 1e6)]
_Factor = Annotated[float, within(0.0, 1e6)]
_Alpha = Annotated[float, within(0.0, 100.0)]
_AscendingEpochs = Annotated[
    tuple[Annotated[float, within(1e-6, 1e6)], ...],
    Condition(lambda value: list(value) == sorted(set(value)), "in ascending order"),
]


def _three(condition: Condition) -> Any:
    """Three numbers that fulfil a condition."""
    number = Annotated[float, condition]
    return tuple[number, number, number]


def _lengthens(config: Mapping[str, Any]) -> bool:
    """Whether more epochs leave those that were trained as they are."""
    return config["schedule"]["name"] in ("constant", "step") and not config["stages"]


class Key(NamedTuple):
    """One key of a config.

    Attributes:
      default: its value where an experiment does not set it.
      hint: its type, see `sop.checks`.
      meaning: one line.
      resume: whether a run may go on with another value; or config → whether.
      stage: whether a stage of `config.stages` may change it.
    """

    default: Any
    hint: Any
    meaning: str
    resume: bool | Callable[[Mapping[str, Any]], bool] = False
    stage: bool = True


KEYS = {
    "seed": Key(
        0,
        Annotated[int, within(0, 2**31 - 1)],
        "of initial parameters, order of examples, augmentation and dropout",
        stage=False,
    ),
    "dtype": Key(
        "float32",
        Literal["float32", "bfloat16"],
        "'float32' or 'bfloat16', of activations; parameters stay float32",
        stage=False,
    ),
    "model.backbone": Key(
        "resnet50",
        str,
        "see docs/networks.md, or by import path; model.…: its options",
        stage=False,
    ),
    "model.num_classes": Key(
        1000,
        Annotated[int, within(1, 10**6)],
        "width of the logits",
        stage=False,
    ),
    "model.attention.name": Key(
        "none",
        str | None,
        "put into blocks: 'gsop', 'cgd', …; further keys: its options",
        stage=False,
    ),
    "model.pool.name": Key(
        None,
        str | None,
        "local pooling; None: the backbone's; further keys: its options",
        stage=False,
    ),
    "model.norm.name": Key(
        None,
        str | None,
        "'iter_norm' in the place of batch norms; None: these; further keys: its options",
        stage=False,
    ),
    "model.representation.name": Key(
        None, str | None, "None: the backbone's; further keys: its options", stage=False
    ),
    "model.detector.name": Key(
        None,
        str | None,
        "'ssd', 'faster_rcnn', 'mask_rcnn'; None: classification; further keys: its options",
        stage=False,
    ),
    "input.dataset": Key(
        "imagenet2012",
        str,
        "a TFDS name ('cifar10:3.0.2'), 'digits', 'typefaces', 'folder:/path' or an import path",
    ),
    "input.data_dir": Key(None, str | None, "of TFDS; None: TFDS's own default", resume=True),
    "input.train_split": Key("train", str, "also parts and sums: 'train[:90%]'"),
    "input.eval_split": Key("validation", str, "as train_split"),
    "input.train_transforms": Key(
        "random_resized_crop(224) | flip", str, "of training images, see docs/data.md"
    ),
    "input.eval_transforms": Key(
        "resize_short(256) | center_crop(224)", str, "of evaluation images"
    ),
    "input.test_transforms": Key(
        None, str | None, "of those of --mode=eval; None: as eval_transforms", resume=True
    ),
    "input.normalization": Key("imagenet", str, "mean and deviation: 'imagenet', 'cifar10', …"),
    "input.mean": Key(
        None,
        _three(within(0.0, 1.0)) | None,
        "of red, green, blue in [0, 1]; None: that of normalization",
    ),
    "input.deviation": Key(None, _three(within(1e-3, 1e3)) | None, "as mean"),
    "input.exif": Key(
        "obey", Literal["obey", "ignore"], "'obey' or 'ignore' the EXIF orientation of a JPEG"
    ),
    "input.cache": Key(False, bool, "keep decoded images in memory", resume=True),
    "input.num_workers": Key(
        2, Annotated[int, within(0, 1024)], "threads that decode; 0: none", resume=True
    ),
    "input.max_objects": Key(
        100,
        Annotated[int, within(1, 10**4)],
        "of an image, for detection: batches are padded to so many",
    ),
    "input.bad_images": Key(
        "stop",
        Literal["stop", "skip"],
        "'stop' or 'skip' where an image cannot be decoded",
        resume=True,
    ),
    "batch_size": Key(256, Count, "examples of a step, over all devices"),
    "accumulation": Key(
        1,
        Annotated[int, within(1, 2**20)],
        "parts that a device cuts its examples of a step into, to save memory",
        resume=True,
    ),
    "eval_batch_size": Key(256, Count, "examples of an evaluation batch", resume=True),
    "num_epochs": Key(
        100,
        Annotated[int, within(1, 10**6)],
        "of the run, or of the stage that sets it",
        resume=_lengthens,
    ),
    "label_smoothing": Key(0.0, Rate, "ε in targets (1 − ε) one-hot + ε/K"),
    "mixup": Key(0.0, _Alpha, "α of mixup, λ ~ Beta(α, α); 0: none"),
    "cutmix": Key(0.0, _Alpha, "α of CutMix; with mixup, each batch has one of the two; 0: none"),
    "remat": Key(
        False,
        bool,
        "compute the inside of blocks again in the backward pass, to save memory",
        resume=True,
        stage=False,
    ),
    "ema_decay": Key(
        None,
        Rate | None,
        "of a moving average of the parameters, evaluated and saved beside them; None: none",
        stage=False,
    ),
    "sync_batch_norm": Key(
        False, bool, "batch norm's statistics are those of all devices", stage=False
    ),
    "sync_representation": Key(
        False, bool, "the same for the representation's batch norm alone", stage=False
    ),
    "optimizer.learning_rate": Key(0.1, _LearningRate, "η, at its highest"),
    "optimizer.rule.name": Key(
        "sgd",
        str | None,
        "'sgd', 'adamw', 'lamb', or an optax factory by import path; further keys: its options",
    ),
    "optimizer.momentum": Key(0.9, Rate, "μ, of 'sgd'"),
    "optimizer.nesterov": Key(False, bool, "Nesterov's momentum, of 'sgd'"),
    "optimizer.weight_decay": Key(1e-4, _Factor, "λ; of 'sgd': added to the gradient as λp"),
    "optimizer.clip_norm": Key(
        None,
        Annotated[float, within(1e-12, 1e12)] | None,
        "largest norm of the whole gradient",
    ),
    "optimizer.lr_multipliers": Key(
        (),
        tuple[tuple[Pattern, _Factor], ...],
        "(regular expression in parameter paths, factor of η), …; the last match wins",
    ),
    "optimizer.weight_decays": Key(
        (),
        tuple[tuple[Pattern, _Factor], ...],
        "(regular expression in parameter paths, λ), …; the last match wins",
    ),
    "optimizer.frozen": Key(
        (), tuple[Pattern, ...], "regular expressions of parameters that stand still"
    ),
    "optimizer.freeze_batch_norm": Key(
        True, bool, "frozen batch norms use and keep their running statistics"
    ),
    "optimizer.keep_momentum": Key(
        False, bool, "a stage starts with the momentum of the one before, not from zero"
    ),
    "schedule.name": Key(
        "step",
        Literal["step", "cosine", "log", "constant"],
        "'step', 'cosine', 'log' or 'constant'",
    ),
    "schedule.warmup_epochs": Key(0.0, _Epochs, "of linear rise to η"),
    "schedule.warmup_learning_rate": Key(
        None, _Factor | None, "η of its first step; None: as large as the rise of one step"
    ),
    "schedule.boundaries": Key((30, 60, 90), _AscendingEpochs, "'step': epochs where η drops"),
    "schedule.factor": Key(
        0.1,
        Annotated[float, within(1e-12, 1e6)],
        "'step': what η is multiplied by there",
    ),
    "schedule.final_learning_rate": Key(0.0, _Factor, "'cosine' and 'log': η at the end"),
    "init_from": Key("", str, "work folder or checkpoint to start from", stage=False),
    "stages": Key(
        (), tuple[dict | ConfigDict, ...], "changed keys of each successive stage", stage=False
    ),
    "checkpoint.keep": Key(
        3, Count, "newest checkpoints kept, beside the best by top-1", resume=True, stage=False
    ),
    "checkpoint.every_steps": Key(
        None, Count | None, "None: at each epoch's end", resume=True, stage=False
    ),
    "eval_every_epochs": Key(1, Count, "epochs from one evaluation to the next", resume=True),
    "compilation_cache": Key(
        "~/.cache/sop",
        str | None,
        "folder where compiled programs are kept for later runs; None: nowhere",
        resume=True,
        stage=False,
    ),
    "compiler_options": Key(
        (),
        tuple[tuple[str, bool | int | float | str], ...],
        "(name of an XLA flag, value), … for the step of training, see docs/accelerators.md",
        resume=True,
        stage=False,
    ),
    "log_every_steps": Key(50, Count, "steps in a point of the curves", resume=True, stage=False),
    "profile": Key(
        0,
        Annotated[int, within(0, 10**4)],
        "steps traced into WORKDIR/profile",
        resume=True,
        stage=False,
    ),
}

# Groups that take further keys: the options of what is named in them, checked where it is made.
OPEN = (
    "model",
    "model.attention",
    "model.pool",
    "model.norm",
    "model.representation",
    "model.detector",
    "optimizer.rule",
)

# Keys of earlier versions.
RENAMED = {
    "model.attention.placement": "model.attention.blocks",
    "model.attention.where": "model.attention.after",
}


def get_config() -> ConfigDict:
    """A config with every key at its default; experiments change some. None: as published."""
    config = ConfigDict()
    for key, (default, *_) in KEYS.items():
        *groups, name = key.split(".")
        group = config
        for each in groups:
            if each not in group:
                group[each] = ConfigDict()
            group = group[each]
        group[name] = placeholder(object) if default is None else default
    return config


def table() -> str:
    """All keys for a reader: key, default and meaning; the type where the default hides it."""
    rows = [
        (
            key,
            repr(default),
            meaning if default or default == 0 else f"{meaning} [{describe(hint)}]",
        )
        for key, (default, hint, meaning, *_) in KEYS.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {k:{widths[0]}}  {d:{widths[1]}}  {m}" for k, d, m in rows)
