"""SGD as the originals' PyTorch runs it, and the learning-rate schedules, composed from optax."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from sop.errors import UsageError

Path = tuple[Any, ...]


def path_name(path: Path) -> str:
    """A key path of a parameter tree as 'features/conv1/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def compile_patterns(patterns: Sequence[str], where: str) -> list[re.Pattern]:
    """Regular expressions, to be searched in parameter paths; a malformed one is a UsageError."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise UsageError(
                f"{where} has {pattern!r}, which is no regular expression ({error}); "
                "write a pattern that is searched in paths like 'features/conv1/kernel'."
            ) from error
    return compiled


def matches_any(patterns: Sequence[str], where: str) -> Callable[[str], bool]:
    """A predicate: does any of the patterns occur in a path?"""
    compiled = compile_patterns(patterns, where)
    return lambda name: any(pattern.search(name) for pattern in compiled)


def _value_by_path(pairs: Sequence[tuple[str, float]], default: float, where: str):
    """The value of the last pair whose pattern occurs in a path, else the default."""
    for pair in pairs:
        if len(pair) != 2 or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
            raise UsageError(
                f"{where} has {pair!r}; each entry must be a pair (regular expression, number)."
            )
    compiled = compile_patterns([pattern for pattern, _ in pairs], where)
    values = [float(value) for _, value in pairs]

    def value(name: str) -> float:
        found = [v for pattern, v in zip(compiled, values, strict=True) if pattern.search(name)]
        return found[-1] if found else default

    return value


def _check_patterns_match(params: Any, config: ConfigDict) -> None:
    """A pattern that touches nothing is a mistake in the config, found before it costs a run."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    groups = {
        "frozen": list(config.frozen),
        "lr_multipliers": [pair[0] for pair in config.lr_multipliers],
        "weight_decays": [pair[0] for pair in config.weight_decays],
    }
    for key, patterns in groups.items():
        for pattern in compile_patterns(patterns, f"config.optimizer.{key}"):
            if not any(pattern.search(name) for name in names):
                raise UsageError(
                    f"config.optimizer.{key} has the pattern {pattern.pattern!r}, which matches no "
                    f"parameter; the parameters have paths like {names[0]!r} and {names[-1]!r}."
                )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay coupled as in `torch.optim.SGD`.

    For a parameter p with gradient g, weight decay λ, momentum μ, rate η(step) and factor f::

        d = clip(g) + λ p,   v ← μ v + d,   u = d + μ v if nesterov else v,   p ← p − η f u

    All parameters decay, biases and BatchNorm's included, unless `weight_decays` says otherwise.
    Frozen parameters have no momentum buffer and do not count in the clipped norm.

    Args:
      config: `config.optimizer`.
      schedule: step → η.
      params: parameter tree (arrays or shapes), for its paths.
    Raises:
      UsageError: a malformed entry, or a pattern that matches no parameter.
    """
    _check_patterns_match(params, config)
    factor = _value_by_path(config.lr_multipliers, 1.0, "config.optimizer.lr_multipliers")
    decay = _value_by_path(
        config.weight_decays, config.weight_decay, "config.optimizer.weight_decays"
    )
    frozen = matches_any(config.frozen, "config.optimizer.frozen")

    def by_path(function):
        return lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: function(path_name(path)), tree
        )

    def distinct(function):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return sorted({function(path_name(path)) for path, _ in leaves})

    def only(function, value):
        return by_path(lambda name: function(name) == value)

    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decays = [
        optax.add_decayed_weights(value, mask=only(decay, value))
        for value in distinct(decay)
        if value != 0
    ]
    factors = [
        optax.masked(optax.scale(value), only(factor, value))
        for value in distinct(factor)
        if value != 1
    ]
    momentum = [optax.trace(config.momentum, config.nesterov)] if config.momentum else []
    sgd = optax.chain(*clip, *decays, *momentum, *factors, optax.scale_by_learning_rate(schedule))
    labels = by_path(lambda name: "frozen" if frozen(name) else "trained")
    return optax.partition({"trained": sgd, "frozen": optax.set_to_zero()}, labels)


def make_schedule(
    config: ConfigDict, learning_rate: float, num_epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """The learning rate at each step, from `config.schedule`.

    - 'constant': `learning_rate`.
    - 'step': × `factor` at each epoch in `boundaries`.
    - 'cosine': half a cosine from `learning_rate` to `final_learning_rate` over the run.
    - 'log': logspace(log10 lr, log10 final, num_epochs), one value per epoch.

    `warmup_epochs` raises it linearly to `learning_rate` first; boundaries count from the start.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = num_epochs * steps_per_epoch
    if warmup and warmup >= total > 0:
        raise UsageError(
            f"config.schedule.warmup_epochs is {config.warmup_epochs}, which leaves nothing of "
            f"num_epochs = {num_epochs}; make it shorter."
        )
    final = config.final_learning_rate
    if config.name == "constant":
        after = optax.constant_schedule(learning_rate)
    elif config.name == "step":
        steps = [round(epoch * steps_per_epoch) - warmup for epoch in config.boundaries]
        after = optax.piecewise_constant_schedule(
            learning_rate, {step: config.factor for step in steps}
        )
    elif config.name == "cosine":
        after = optax.cosine_decay_schedule(
            learning_rate, max(total - warmup, 1), final / learning_rate
        )
    elif config.name == "log":
        if final <= 0:
            raise UsageError(
                "config.schedule.name is 'log', which needs config.schedule.final_learning_rate "
                f"above 0, but it is {final}."
            )
        rate = (final / learning_rate) ** (1 / max(num_epochs - 1, 1))
        after = optax.exponential_decay(learning_rate, steps_per_epoch, rate, staircase=True)
    else:
        raise UsageError(
            f"config.schedule.name is {config.name!r}; use 'constant', 'step', 'cosine' or 'log'."
        )
    if not warmup:
        return after
    rise = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])
