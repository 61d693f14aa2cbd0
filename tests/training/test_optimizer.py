"""Optimizers against their rules written out, and the schedules against their definitions."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from sop.config import get_config
from sop.errors import UsageError
from sop.training.optimizer import keep_momentum, make_optimizer, make_schedule
from sop.training.stages import make_stages

SHAPES = {
    "features": {"conv": {"kernel": (3, 4)}, "bn": {"scale": (4,)}},
    "classifier": {"kernel": (4, 2), "bias": (2,)},
}


def tree_of(make):
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def options(**changes) -> ConfigDict:
    config = get_config().optimizer
    with config.unlocked():
        config.update(changes)
    return config


def torch_sgd(params, grads, *, lr, momentum, nesterov, decay, factor, frozen, clip):
    """`torch.optim.SGD` (dampening 0) after `clip_grad_norm_`, one parameter group per leaf."""
    flat = {name: np.array(p, np.float64) for name, p in params.items()}
    velocity = {}
    for step_grads in grads:
        trained = {k: np.array(g, np.float64) for k, g in step_grads.items() if k not in frozen}
        norm = np.sqrt(sum((g**2).sum() for g in trained.values()))
        scale = min(1.0, clip / norm) if clip else 1.0
        for name, grad in trained.items():
            d = grad * scale + decay[name] * flat[name]
            velocity[name] = d if name not in velocity else momentum * velocity[name] + d
            update = d + momentum * velocity[name] if nesterov else velocity[name]
            flat[name] = flat[name] - lr * factor[name] * update
    return flat


def flatten(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_sgd_is_pytorchs(nesterov, clip):
    rng = np.random.default_rng(0)
    params = tree_of(lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32))
    grads = [
        tree_of(lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32))
        for _ in range(4)
    ]
    config = options(
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        clip_norm=clip,
        lr_multipliers=(("classifier", 5.0), ("bias", 2.0)),
        weight_decays=(("scale", 0.0), ("classifier", 0.1)),
        frozen=("conv/",),
    )
    tx = make_optimizer(config, lambda step: 0.1, params)
    state, ours = tx.init(params), params
    for g in grads:
        updates, state = tx.update(g, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)

    conv, scale, kernel, bias = (
        "features/conv/kernel",
        "features/bn/scale",
        "classifier/kernel",
        "classifier/bias",
    )
    theirs = torch_sgd(
        flatten(params),
        [flatten(g) for g in grads],
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
        decay={scale: 0.0, kernel: 0.1, bias: 0.1},
        factor={scale: 1.0, kernel: 5.0, bias: 2.0},
        frozen=(conv,),
        clip=clip,
    )
    for name, value in flatten(ours).items():
        np.testing.assert_allclose(value, theirs[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert all(leaf.shape != (3, 4) for leaf in jax.tree.leaves(state))  # no buffer where frozen


def adamw(params, grads, *, lr, decay, factor, frozen, clip, trust=False):
    """Loshchilov & Hutter (2019), algorithm 2; with `trust` LAMB (You et al. 2020), algorithm 2."""
    flat = {name: np.array(p, np.float64) for name, p in params.items()}
    mean, square = ({name: 0.0 for name in flat} for _ in range(2))
    for step, step_grads in enumerate(grads, 1):
        trained = {k: np.array(g, np.float64) for k, g in step_grads.items() if k not in frozen}
        scale = min(1.0, clip / np.sqrt(sum((g**2).sum() for g in trained.values())))
        for name, grad in trained.items():
            mean[name] = 0.8 * mean[name] + 0.2 * scale * grad
            square[name] = 0.999 * square[name] + 0.001 * (scale * grad) ** 2
            second = np.sqrt(square[name] / (1 - 0.999**step))
            u = mean[name] / (1 - 0.8**step) / (second + 1e-7) + decay[name] * flat[name]
            u = u * np.linalg.norm(flat[name]) / np.linalg.norm(u) if trust else u
            flat[name] = flat[name] - lr * factor[name] * u
    return flat


def drawn(seed, steps=4):
    """Parameters, and gradients for some steps."""
    rng = np.random.default_rng(seed)

    def draw():
        return tree_of(lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32))

    return draw(), [draw() for _ in range(steps)]


def updated(tx, params, grads):
    state = tx.init(params)
    for each in grads:
        updates, state = tx.update(each, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_rules_of_optax_have_rates_and_decays_by_parameter(name):
    params, grads = drawn(1)
    config = options(
        rule={"name": name, "b1": 0.8, "eps": 1e-7},
        weight_decay=0.01,
        clip_norm=0.5,
        lr_multipliers=(("classifier", 5.0), ("bias", 2.0)),
        weight_decays=(("scale", 0.0), ("classifier", 0.1)),
        frozen=("conv/",),
    )
    ours = updated(make_optimizer(config, lambda step: 0.1, params), params, grads)
    theirs = adamw(
        flatten(params),
        [flatten(each) for each in grads],
        lr=0.1,
        decay={"features/bn/scale": 0.0, "classifier/kernel": 0.1, "classifier/bias": 0.1},
        factor={"features/bn/scale": 1.0, "classifier/kernel": 5.0, "classifier/bias": 2.0},
        frozen=("features/conv/kernel",),
        clip=0.5,
        trust=name == "lamb",
    )
    for key, value in flatten(ours).items():
        np.testing.assert_allclose(value, theirs[key], rtol=2e-4, atol=1e-5, err_msg=key)


def test_a_rule_by_import_path_follows_the_schedule():
    params, grads = drawn(2)
    config = options(rule={"name": "optax:nadamw", "b2": 0.99}, weight_decay=0.01)
    rates = optax.linear_schedule(0.1, 0.0, 4)
    ours = updated(make_optimizer(config, rates, params), params, grads)
    theirs = updated(optax.nadamw(rates, b2=0.99, weight_decay=0.01), params, grads)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_rule_without_weight_decay_is_given_it_in_the_gradient():
    params, grads = drawn(3)
    config = options(rule={"name": "optax:rmsprop"}, weight_decay=0.01)
    ours = updated(make_optimizer(config, lambda step: 0.1, params), params, grads)
    coupled = optax.chain(optax.add_decayed_weights(0.01), optax.rmsprop(lambda step: 0.1))
    jax.tree.map(np.testing.assert_array_equal, ours, updated(coupled, params, grads))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rule": {"name": "adam"}}, "There is no optimizer 'adam' for config.optimizer.rule; the"),
        ({"rule": {"name": "optax:none"}}, "optimizer 'optax:none' cannot be imported: module"),
        ({"rule": {"name": "no_such:x"}}, "cannot be imported: No module named 'no_such'"),
        ({"rule": {"name": "optax:__doc__"}}, "takes no learning_rate; name a function as"),
        ({"rule": {"name": "optax:trace"}}, "takes no learning_rate"),
        ({"rule": {"name": "adamw", "beta": 1}}, "no option 'beta' of optimizer 'adamw'; it takes"),
        ({"rule": {"name": "adamw", "weight_decay": 1}}, "no option 'weight_decay' of optimizer"),
        (
            {"rule": {"name": "lamb", "b1": "x"}},
            "cannot be used with the options {'b1': 'x'}: Type",
        ),
        ({"rule": {"name": "optax:lbfgs"}}, "cannot be used with the options {}: "),
        ({"rule": {"name": "adamw"}, "nesterov": True}, "nesterov is of the rule 'sgd', not of"),
        ({"rule": {"name": "lamb"}, "momentum": 0.5}, "leave it at 0.9, and give 'lamb' options"),
        ({"rule": {"name": "sgd", "b1": 0.5}}, "'sgd' takes no options; remove 'b1', and set"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(changes, sentence):
    with pytest.raises(UsageError) as refusal:
        make_optimizer(options(**changes), lambda step: 0.1, tree_of(jnp.ones))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"frozen": ("no_such_layer",)},
        {"lr_multipliers": (("no_such_layer", 2.0),)},
        {"weight_decays": (("no_such_layer", 0.0),)},
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(changes):
    params = tree_of(jnp.ones)
    with pytest.raises(UsageError, match=r"no_such_layer.*matches no parameter"):
        make_optimizer(options(**changes), lambda step: 0.1, params)


def schedule(num_epochs=10, steps_per_epoch=4, learning_rate=0.1, **changes):
    config = get_config().schedule
    config.boundaries = ()
    config.update(changes)
    return make_schedule(config, learning_rate, num_epochs, steps_per_epoch)


def values(function, steps):
    return np.array([float(function(step)) for step in range(steps)])


def test_boundaries_that_round_to_one_step_all_act():
    rates = values(schedule(name="step", boundaries=(3, 3.1), factor=0.1), 40)
    np.testing.assert_allclose(rates[[11, 12]], [0.1, 0.001], rtol=1e-6)


def test_a_boundary_at_the_end_of_the_warmup_acts_there():
    rates = values(schedule(name="step", boundaries=(2,), warmup_epochs=2), 40)
    np.testing.assert_allclose(rates[:8], 0.1 * (1 + np.arange(8) * 7 / 8) / 8, rtol=1e-5)
    np.testing.assert_allclose(rates[8:], 0.01, rtol=1e-6)


def test_log_schedule_after_a_warmup_reaches_its_end():
    rates = values(schedule(name="log", final_learning_rate=1e-3, warmup_epochs=5), 40)
    np.testing.assert_allclose(rates[20::4], np.logspace(-1, -3, 5), rtol=1e-4)


def test_step_schedule_drops_at_the_boundaries():
    rates = values(schedule(name="step", boundaries=(3, 5), factor=0.1), 40)
    np.testing.assert_allclose(rates[:12], 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates[12:20], 0.01, rtol=1e-6)
    np.testing.assert_allclose(rates[20:], 0.001, rtol=1e-6)


def test_warmup_rises_and_boundaries_still_count_from_the_start():
    rates = values(schedule(name="step", boundaries=(3,), factor=0.1, warmup_epochs=2), 40)
    np.testing.assert_allclose(rates[:8], 0.1 * (1 + np.arange(8) * 7 / 8) / 8, rtol=1e-5)
    np.testing.assert_allclose(rates[8:12], 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates[12:], 0.01, rtol=1e-6)


def test_cosine_schedule():
    rates = values(schedule(name="cosine", final_learning_rate=0.01), 41)
    expected = 0.01 + 0.09 * (1 + np.cos(np.pi * np.arange(41) / 40)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_log_schedule_is_a_logspace_over_epochs():
    rates = values(schedule(name="log", final_learning_rate=1e-4), 40)
    np.testing.assert_allclose(rates[::4], np.logspace(-1, -4, 10), rtol=1e-4)
    np.testing.assert_allclose(rates[3::4], rates[::4], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "log"}, "final_learning_rate"),
        ({"name": "cosine", "warmup_epochs": 10.0}, "warmup_epochs"),
        ({"boundaries": (3, 10)}, "boundaries has 10, which is never reached"),
        ({"boundaries": (1, 3), "warmup_epochs": 2}, "has 1, which is before the end of the warm"),
    ],
)
def test_senseless_schedules_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        schedule(**changes)


def test_warmup_from_zero_is_a_line_through_the_origin():
    rates = values(schedule(name="step", warmup_epochs=2, warmup_learning_rate=0.0), 12)
    np.testing.assert_allclose(rates[:8], 0.1 * np.arange(8) / 8, rtol=1e-5)
    np.testing.assert_allclose(rates[8:], 0.1, rtol=1e-6)


def test_momentum_survives_from_one_stage_to_the_next():
    """What is frozen in either has none, and starts from zero."""
    params = tree_of(jnp.ones)
    grads = tree_of(lambda shape: jnp.full(shape, 2.0))

    def optimizer(frozen, rate):
        return make_optimizer(options(frozen=frozen, weight_decay=0.0), lambda step: rate, params)

    first, second = optimizer(("^features/",), 0.1), optimizer(("bias",), 0.01)
    _, before = first.update(grads, first.init(params), params)
    fresh = second.init(params)
    updates, _ = second.update(grads, keep_momentum(before, fresh), params)
    found = {name: float(leaf.ravel()[0]) for name, leaf in flatten(updates).items()}
    assert found == pytest.approx(
        {
            "classifier/kernel": -0.01 * (0.9 * 2 + 2),
            "classifier/bias": 0.0,
            "features/conv/kernel": -0.01 * 2,
            "features/bn/scale": -0.01 * 2,
        }
    )
    assert jax.tree.structure(keep_momentum(before, fresh)) == jax.tree.structure(fresh)
    plain = make_optimizer(options(momentum=0.0), lambda step: 0.1, params)
    assert keep_momentum(before, plain.init(params)) == plain.init(params)


def test_more_steps_than_int32_counts_are_refused():
    config = get_config()
    config.num_epochs, config.schedule.name = 10**6, "constant"
    data = SimpleNamespace(steps_per_epoch=5000)
    with pytest.raises(UsageError, match=r"one of 5000000000 steps, more than 2147483647; set"):
        make_stages([config], [(data, data)])


def test_all_frozen_is_refused():
    params = {"a": {"kernel": jnp.zeros(3)}, "b": jnp.zeros(2)}
    frozen = options(frozen=("a", "b"))
    with pytest.raises(UsageError, match=r"\('a', 'b'\), which leaves no parameter to train"):
        make_optimizer(frozen, lambda step: 0.1, params)
    frozen.freeze_batch_norm = False  # statistics may be taken anew
    make_optimizer(frozen, lambda step: 0.1, params)
