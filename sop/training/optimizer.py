"""SGD as the originals' PyTorch runs it, optax's rules, and learning-rate schedules, from optax."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from sop.checks import quote
from sop.config.schema import KEYS
from sop.errors import UsageError, shorten, show
from sop.import_path import import_object, is_import_path

Path = tuple[Any, ...]

# Beside 'sgd', whose weight decay optax does not couple as PyTorch does.
RULES = {"adamw": optax.adamw, "lamb": optax.lamb}
# Arguments of a factory that other keys of the config set.
_SET = ("learning_rate", "weight_decay", "mask", "weight_decay_mask")
_OF_SGD = ("momentum", "nesterov", "keep_momentum")


def path_name(path: Path) -> str:
    """A key path of a parameter tree as 'features/conv1/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches_any(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A predicate: does any of the regular expressions occur in a path?"""
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


def frozen_statistics(config: ConfigDict) -> Callable[[str], bool]:
    """Of a stage's config: path of a batch norm's scale → whether its statistics stand still."""
    return matches_any(config.optimizer.frozen if config.optimizer.freeze_batch_norm else ())


def _value_by_path(pairs: Sequence[tuple[str, float]], default: float) -> Callable[[str], float]:
    """The value of the last pair whose pattern occurs in a path, else the default."""

    def value(name: str) -> float:
        found = [float(each) for pattern, each in pairs if re.search(pattern, name)]
        return found[-1] if found else default

    return value


def _check_patterns_match(params: Any, config: ConfigDict) -> None:
    """Patterns that touch nothing, or freeze everything, are mistakes in the config."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    groups = {
        "frozen": list(config.frozen),
        "lr_multipliers": [pair[0] for pair in config.lr_multipliers],
        "weight_decays": [pair[0] for pair in config.weight_decays],
    }
    for key, patterns in groups.items():
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise UsageError(
                    f"config.optimizer.{key} has the pattern {show(pattern)}, which matches no "
                    f"parameter; the parameters have paths like {names[0]!r} and {names[-1]!r}."
                )
    if config.freeze_batch_norm and all(map(matches_any(config.frozen), names)):
        raise UsageError(
            f"config.optimizer.frozen is {show(config.frozen)}, which leaves no parameter to "
            "train; freeze fewer."
        )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """The optimizer of `config.rule`, with a rate and a decay for each parameter.

    'sgd' is SGD with momentum and weight decay coupled as in `torch.optim.SGD`. For a parameter p
    with gradient g, weight decay λ, momentum μ, rate η(step) and factor f::

        d = clip(g) + λ p,   v ← μ v + d,   u = d + μ v if nesterov else v,   p ← p − η f u

    Another rule is `optax.adamw`, `optax.lamb` or the factory of an import path, called with
    `learning_rate` = η, `weight_decay` = λ and the rule's own options; its updates of clip(g) are
    multiplied by f. A factory that takes no `weight_decay` is given clip(g) + λ p.

    All parameters decay, biases and BatchNorm's included, unless `weight_decays` says otherwise.
    Frozen parameters have no state and do not count in the clipped norm.

    Args:
      config: `config.optimizer`.
      schedule: step → η.
      params: parameter tree (arrays or shapes), for its paths.
    Raises:
      UsageError: a pattern matches no parameter, or all are frozen; there is no such rule, or it
        does not take its options.
    """
    _check_patterns_match(params, config)
    factor = _value_by_path(config.lr_multipliers, 1.0)
    decay = _value_by_path(config.weight_decays, config.weight_decay)
    frozen = matches_any(config.frozen)

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
    name, options = _rule(config)
    if name == "sgd":
        momentum = [optax.trace(config.momentum, config.nesterov)] if config.momentum else []
        steps = [*decays, *momentum, *factors, optax.scale_by_learning_rate(schedule)]
    else:
        factory = partial(_factory(name, options), learning_rate=schedule, **options)
        if "weight_decay" in inspect.signature(factory).parameters:
            groups = {f"{each}": partial(factory, weight_decay=each) for each in distinct(decay)}
            labels = by_path(lambda name: f"{decay(name)}")
            rule = _made(name, options, groups, labels, params)
            steps = [rule, *factors]
        else:
            steps = [*decays, _made(name, options, {"": factory}, None, params), *factors]
    labels = by_path(lambda name: "frozen" if frozen(name) else "trained")
    trained = optax.chain(*clip, *steps)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _rule(config: ConfigDict) -> tuple[str, dict[str, Any]]:
    """The name of a rule, and its options."""
    options = {key: value for key, value in (config.rule or {}).items() if value is not None}
    name = options.pop("name", "sgd")
    if name == "sgd" and options:
        raise UsageError(
            f"config.optimizer.rule 'sgd' takes no options; remove {quote(options)}, and set "
            "config.optimizer.momentum and config.optimizer.nesterov."
        )
    for key in _OF_SGD if name != "sgd" else ():
        default = KEYS[f"optimizer.{key}"].default
        if config[key] != default:
            raise UsageError(
                f"config.optimizer.{key} is of the rule 'sgd', not of {show(name)}: leave it at "
                f"{default}, and give {show(name)} options of its own in config.optimizer.rule."
            )
    return name, options


def _factory(name: str, options: Mapping[str, Any]) -> Callable[..., optax.GradientTransformation]:
    """The function behind the name of a rule, which takes a learning rate and the options."""
    if name not in RULES and not is_import_path(name):
        raise UsageError(
            f"There is no optimizer {show(name)} for config.optimizer.rule; there are "
            f"{quote(['sgd', *RULES])}, or 'package.module:function', such as 'optax:nadamw'."
        )
    found = RULES[name] if name in RULES else import_object("optimizer", name)
    try:
        takes = list(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # no function, or one of C
        takes = []
    if "learning_rate" not in takes:
        raise UsageError(
            f"optimizer {show(name)} takes no learning_rate; name a function as 'optax:nadamw'."
        )
    takes = [each for each in takes if each not in _SET]
    if unknown := [each for each in options if each not in takes]:
        raise UsageError(
            f"There is no option {show(unknown[0])} of optimizer {show(name)}; it takes "
            f"{quote(takes) or 'none'}."
        )
    return found


def _made(name, options, groups, labels, params):
    """The rule of each group of parameters in one, tried on shapes."""
    try:
        made = {label: factory() for label, factory in groups.items()}
        tx = next(iter(made.values())) if len(made) == 1 else optax.partition(made, labels)
        jax.eval_shape(lambda tree: tx.update(tree, tx.init(tree), tree), params)
    except Exception as error:  # whatever a factory, perhaps the user's own, makes of its options
        said = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"optimizer {show(name)} cannot be used with the options {show(options)}: "
            f"{type(error).__name__}: {shorten(said)}; change them, or choose another."
        ) from error
    return tx


def keep_momentum(before: Any, state: Any) -> Any:
    """The new `state` of an optimizer with the momentum of another's, for the same parameters.

    What was frozen before, or is now, has none to keep, nor has a rule without momentum.
    """
    old, new = (optax.tree.get(each, "trace") for each in (before, state))
    if old is None or new is None:  # no momentum
        return state

    def is_frozen(leaf):
        return isinstance(leaf, optax.MaskedNode)

    def choose(mine, theirs):
        return mine if is_frozen(mine) or is_frozen(theirs) else theirs

    return optax.tree.set(state, trace=jax.tree.map(choose, new, old, is_leaf=is_frozen))


def make_schedule(
    config: ConfigDict, learning_rate: float, num_epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """The learning rate at each step, from `config.schedule`.

    - 'constant': `learning_rate`.
    - 'step': × `factor` at each epoch in `boundaries`, which count from the start.
    - 'cosine': half a cosine from `learning_rate` to `final_learning_rate`.
    - 'log': logspace(log10 lr, log10 final, epochs), one value per epoch.

    `warmup_epochs` raises it linearly to `learning_rate` first, from `warmup_learning_rate`;
    'cosine' and 'log' then have the epochs that are left.

    Raises:
      UsageError: the warm-up leaves no epoch, a boundary lies within it or would never act, or
        'log' has no final rate.
    """
    warmup_epochs, final = config.warmup_epochs, config.final_learning_rate
    if warmup_epochs >= num_epochs:
        raise UsageError(
            f"config.schedule.warmup_epochs is {warmup_epochs}, which leaves nothing of "
            f"num_epochs = {num_epochs}; make it shorter."
        )
    warmup = round(warmup_epochs * steps_per_epoch)
    left = num_epochs - warmup_epochs
    match config.name:
        case "constant":
            after = optax.constant_schedule(learning_rate)
        case "step":
            after = _step_schedule(config, learning_rate, num_epochs, steps_per_epoch, warmup)
        case "cosine":
            steps = max(round(left * steps_per_epoch), 1)
            after = optax.cosine_decay_schedule(learning_rate, steps, final / learning_rate)
        case "log":
            if final <= 0:
                raise UsageError(
                    "config.schedule.name is 'log', which needs "
                    f"config.schedule.final_learning_rate above 0, but it is {final}."
                )
            rate = (final / learning_rate) ** (1 / max(math.ceil(left) - 1, 1))
            after = optax.exponential_decay(learning_rate, steps_per_epoch, rate, staircase=True)
    if not warmup:
        return after
    start = config.warmup_learning_rate
    start = learning_rate / warmup if start is None else start
    rise = optax.linear_schedule(start, learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _step_schedule(config, learning_rate, num_epochs, steps_per_epoch, warmup):
    """Counts its steps from the end of the warm-up."""
    factors: dict[int, float] = {}
    for epoch in config.boundaries:
        if not config.warmup_epochs <= epoch < num_epochs:
            within = "before the end of the warm-up" if epoch < num_epochs else "never reached"
            raise UsageError(
                f"config.schedule.boundaries has {epoch}, which is {within} "
                f"(warmup_epochs = {config.warmup_epochs}, num_epochs = {num_epochs}): leave it "
                "out or change it."
            )
        step = round(epoch * steps_per_epoch) - warmup
        factors[step] = factors.get(step, 1.0) * config.factor
    return optax.piecewise_constant_schedule(learning_rate, factors)
