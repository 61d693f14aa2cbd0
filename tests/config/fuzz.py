"""Config values that nobody means, drawn at random, and what a run does with a config first."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs import digits
from sop.checks import hints_of
from sop.command import Parser
from sop.config import check_batches, stage_configs
from sop.config.command_line import add_config, parse
from sop.config.schema import KEYS
from sop.data import transforms
from sop.data.normalization import check_normalization, make_normalize
from sop.models import BACKBONES, create_model
from sop.models.attention import ATTENTIONS
from sop.models.lookup import RESERVED
from sop.models.parts import NORMS, POOLS, REPRESENTATIONS
from sop.training.mixing import make_mixing
from sop.training.optimizer import RULES, make_optimizer, make_schedule
from sop.training.state import init_state, init_variables

_ROLES = {
    "attention": ATTENTIONS,
    "pool": POOLS,
    "norm": NORMS,
    "representation": REPRESENTATIONS,
}
_SCALARS = (
    *("''", "' '", "None", "True", "nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "1", "1.5"),
    *("1e308", "1e-308", "1e30", "1e-30", "100000", "99999999", "2147483648", "1" + "0" * 30),
    *("9" * 5000, "0x10", "1_000", "1j", "b'x'", "...", "'a'", "'('", "'(?P<'", "'a{99999999999}'"),
    *("'\\n'", "'é\\u202e'", "'\\ud800'", "'\\x00'", "'" + "x" * 20_000 + "'", "'/dev/null'"),
)
_TEXTS = (
    *("", " ", ":", "::", "a:b", "os:getcwd", "os:path", "sys:exit", "sop.layers:MPNCOV", ".:x"),
    *("sop.layers:MaxPool", "flax.linen:Dense", "flax.linen:BatchNorm", "flax.linen:Module"),
    *("sop.models:x", "..a:b", "a b:c", "lambda x: x", '__import__("os").getcwd()', "../..", "~"),
    *("é", "\u202e", "\udcff", "a\nb", "a=b", "--config", "$HOME", "%s", "{0}", "gsop", "x" * 9000),
    *("resnet99999998_cifar", "resnet1_cifar", "wrn16_999_cifar", "resnet" + "9" * 5000 + "_cifar"),
    *(
        "flip",
        "flip|",
        "|",
        "flip()()",
        "flip(**{1: 2})",
        "flip(*[1])",
        "resize(1, 2, 3)",
        "a.b(1)",
    ),
    *("|".join(["flip"] * 3000), "(" * 300, "(" * 50_000, "-" * 3000 + "1", "flip" + "()" * 3000),
)


def draw(rng: random.Random) -> list[str]:
    """Changes of a config on the command line, most of which must be refused in one sentence."""
    value = _literal(rng, 0) if rng.random() < 0.7 else rng.choice(_TEXTS)
    kinds = ["key", "key", "option", "option", "backbone", "stage", "transform", "group", "rule"]
    kind = rng.choice(kinds)
    groups = sorted({key.rpartition(".")[0] for key in KEYS} - {""})
    match kind:
        case "key":
            return [f"--config.{rng.choice(list(KEYS))}={value}"]
        case "option":
            role = rng.choice(list(_ROLES))
            name = rng.choice(list(_ROLES[role]))
            options = [each for each in hints_of(_ROLES[role][name]) if each not in RESERVED]
            option = rng.choice([*options, "blocks", "after", "none_such"])
            return [f"--config.model.{role}={name}", f"--config.model.{role}.{option}={value}"]
        case "backbone":
            own = ("sop.models.resnet:ResNet", "sop.layers:MaxPool", "os:getcwd")
            name = rng.choice([*BACKBONES, *own]).format(depth=8, widening=1)
            names = ["dropout", "stage_size", "last_stride", "block", "hidden", "multiplier"]
            names.append("stochastic_depth")
            option = f"--config.model.{rng.choice(names)}={value}"
            return [f"--config.model.backbone={name}", option]
        case "rule":
            option = rng.choice(["b1", "eps", "mu_dtype", "nesterov", "weight_decay", "none_such"])
            name = rng.choice([*RULES, "optax:adafactor"])
            rule = "--config.optimizer.rule"
            return [f"{rule}={name}", f"{rule}.{option}={value}"]
        case "stage":
            *above, last = rng.choice(list(KEYS)).split(".")
            inner = f"{{'{last}': {value}}}"
            for group in reversed(above):
                inner = f"{{'{group}': {inner}}}"
            return [f"--config.stages=({inner},)"]
        case "transform":
            key = rng.choice(["train", "eval"])
            name = rng.choice([*transforms.TRANSFORMS, "sop.data.transforms:Flip", "os:getcwd"])
            return [f"--config.input.{key}_transforms={name}({value})"]
        case _:
            return [f"--config.{rng.choice(groups)}={value}"]


def _literal(rng: random.Random, depth: int) -> str:
    """A Python literal, nested now and then."""
    if depth == 3 or rng.random() < 0.6:
        return rng.choice(_SCALARS)
    items = [_literal(rng, depth + 1) for _ in range(rng.randrange(3))]
    inside = ", ".join(items)
    pairs = ", ".join(f"{key}: {item}" for key, item in zip(("'a'", "1"), items, strict=False))
    return rng.choice([f"[{inside}]", f"({inside},)" if items else "()", f"{{{pairs}}}"])


def take(overrides: list[str]) -> None:
    """What a run does with these changes of the digits' config before it touches any data.

    Raises:
      UsageError: they cannot be meant.
    """
    parser = Parser(prog="fuzz")
    add_config(parser, default=str(Path(digits.__file__)))
    _, config = parse(parser, overrides)
    check_batches(config, 1)
    model = create_model(config.model, dtype=jnp.dtype(config.dtype), remat=config.remat)
    for stage in stage_configs(config):
        check_normalization(stage.input.normalization)
        sizes = [
            transforms.parse(text, training=training).output_size((8, 8)) or (8, 8)
            for text, training in (
                (stage.input.train_transforms, True),
                (stage.input.eval_transforms, False),
            )
        ]
        rate = stage.optimizer.learning_rate
        schedule = make_schedule(stage.schedule, rate, stage.num_epochs, 22)
        shapes: Any = jax.eval_shape(partial(init_variables, model, config.seed, (*sizes[0], 3)))
        tx = make_optimizer(stage.optimizer, schedule, shapes["params"])
        jax.eval_shape(partial(init_state, tx=tx, ema=config.ema_decay is not None), shapes)
        images = jax.ShapeDtypeStruct((2, *sizes[0], 3), jnp.uint8)
        jax.eval_shape(make_normalize(stage), images)
        if mixing := make_mixing(stage.mixup, stage.cutmix):
            jax.eval_shape(mixing, jax.random.key(0), images)
