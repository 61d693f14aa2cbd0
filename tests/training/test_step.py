"""The data-parallel step: its mappings agree, its options do what they say."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sop.data.normalization import normalize
from sop.layers import BatchNorm
from sop.training.evaluation import evaluate
from sop.training.mixing import make_mixing, partners
from sop.training.state import init_state, init_variables
from sop.training.step import (
    AXIS,
    data_parallel,
    hits,
    make_eval_step,
    make_mesh,
    make_train_step,
    replicated,
    to_devices,
)

PREPARE = partial(normalize, name="none")


class Network(nn.Module):
    """A little of everything that a step must handle."""

    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = BatchNorm(axis_name=self.axis_name, name="bn")(x, train)
        x = nn.relu(x).mean((1, 2))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(10, name="classifier")(x)


def batch_of(rng, size=16):
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def initial(model, tx):
    return init_state(init_variables(model, 0, (8, 8, 3)), tx)


def assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


TX = optax.sgd(0.1, momentum=0.9)


def run(step, mesh, state, batches):
    mapped = data_parallel(step, mesh)
    state = jax.device_put(state, replicated(mesh))
    for batch in batches:
        state, metrics = mapped(state, to_devices(mesh, batch))
    return jax.device_get(state), jax.device_get(metrics)


def test_pmap_of_the_same_function_takes_the_same_step():
    rng = np.random.default_rng(1)
    model = Network(dropout=0.2)
    step = make_train_step(model, TX, normalize=PREPARE, label_smoothing=0.1)
    state, batch = initial(model, TX), batch_of(rng)
    ours, our_metrics = run(step, make_mesh(), state, [batch])

    copies = jax.tree.map(lambda x: jnp.stack([x] * 8), state)
    shards = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in batch.items()}
    theirs, their_metrics = jax.pmap(step, axis_name=AXIS)(copies, shards)
    assert_close(ours, jax.tree.map(lambda x: x[3], theirs), 1e-6)
    assert_close(our_metrics, jax.tree.map(lambda x: x[0], their_metrics), 1e-6)


def test_synchronised_batch_norm_makes_one_device_and_eight_agree():
    rng = np.random.default_rng(2)
    batches = [batch_of(rng) for _ in range(3)]
    model = Network(axis_name=AXIS)
    step = make_train_step(model, TX, normalize=PREPARE)
    state = initial(model, TX)
    eight, eight_metrics = run(step, make_mesh(), state, batches)
    one, one_metrics = run(step, make_mesh(jax.devices()[:1]), state, batches)
    assert_close(eight, one, 1e-5)
    assert_close(eight_metrics, one_metrics, 1e-5)


@pytest.mark.parametrize(("devices", "mixing"), [(1, None), (2, make_mixing(0.4, 1.0))])
def test_few_devices_with_parts_take_the_step_of_many(devices, mixing):
    """Dropout, what is mixed, and the statistics of a batch norm of each device, included."""
    rng = np.random.default_rng(9)
    model, batches = Network(dropout=0.2), [batch_of(rng) for _ in range(2)]
    state = initial(model, TX)
    make = partial(make_train_step, model, TX, normalize=PREPARE, mixing=mixing)
    eight, eight_metrics = run(make(), make_mesh(), state, batches)
    mesh = make_mesh(jax.devices()[:devices])
    few, few_metrics = run(make(accumulation=8 // devices), mesh, state, batches)
    assert_close(few, eight, 1e-5)
    assert_close(few_metrics, eight_metrics, 1e-5)


def test_parts_need_the_memory_of_one():
    model, mesh = Network(), make_mesh(jax.devices()[:1])
    state = jax.eval_shape(lambda: initial(model, TX))
    batch = {"image": ((512, 16, 16, 3), jnp.uint8), "label": ((512,), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(*each) for name, each in batch.items()}
    whole, cut = (
        data_parallel(make_train_step(model, TX, normalize=PREPARE, accumulation=parts), mesh)
        .lower(state, batch)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for parts in (1, 8)
    )
    assert cut < whole / 4


def test_batch_norm_per_device_averages_running_statistics():
    rng = np.random.default_rng(3)
    model, batch = Network(), batch_of(rng)
    step = make_train_step(model, TX, normalize=PREPARE)
    state, _ = run(step, make_mesh(), initial(model, TX), [batch])
    features = np.asarray(
        nn.Conv(8, (3, 3)).apply(
            {"params": initial(model, TX).params["conv"]}, PREPARE(batch["image"])
        )
    ).reshape(8, -1, 8)
    assert_close(state.model_state["batch_stats"]["bn"]["mean"], 0.1 * features.mean((0, 1)), 1e-6)
    per_device = features.var(axis=1, ddof=1).mean(axis=0)
    assert_close(state.model_state["batch_stats"]["bn"]["var"], 0.9 + 0.1 * per_device, 1e-5)


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics():
    rng = np.random.default_rng(4)
    model, batch = Network(), batch_of(rng)
    state = initial(model, TX)
    step = make_train_step(
        model, TX, normalize=PREPARE, frozen_batch_norm=lambda name: name.startswith("bn/")
    )
    after, metrics = run(step, make_mesh(), state, [batch])
    assert_close(after.model_state, state.model_state, 0)
    logits = model.apply(state.variables, PREPARE(batch["image"]), train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_label_smoothing_is_pytorchs():
    rng = np.random.default_rng(5)
    model, batch = Network(), batch_of(rng)
    step = make_train_step(
        model, TX, normalize=PREPARE, label_smoothing=0.1, frozen_batch_norm=lambda name: True
    )
    state = initial(model, TX)
    _, metrics = run(step, make_mesh(jax.devices()[:1]), state, [batch])
    logits = model.apply(state.variables, PREPARE(batch["image"]), train=False)
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    right = logp[np.arange(16), batch["label"]]
    expected = -(0.9 * right + 0.1 * logp.mean(axis=1)).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_targets_are_mixed_as_the_images_are():
    rng = np.random.default_rng(11)
    model, batch, share = Network(), batch_of(rng), 0.7
    others = {name: value.reshape(8, 2, *value.shape[1:])[:, ::-1] for name, value in batch.items()}
    others = {name: value.reshape(batch[name].shape) for name, value in others.items()}

    def mixing(key, images):
        return share * images + (1 - share) * partners(images), share

    step = make_train_step(
        model, TX, normalize=PREPARE, mixing=mixing, frozen_batch_norm=lambda name: True
    )
    state = initial(model, TX)
    _, metrics = run(step, make_mesh(), state, [batch])
    images = share * batch["image"] + (1 - share) * others["image"]
    logits = model.apply(state.variables, PREPARE(images.astype(np.float32)), train=False)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = share * entropy(logits, batch["label"]) + (1 - share) * entropy(logits, others["label"])
    np.testing.assert_allclose(metrics["loss"], loss.mean(), rtol=1e-5)
    right = share * hits(logits, batch["label"], 1) + (1 - share) * hits(logits, others["label"], 1)
    np.testing.assert_allclose(metrics["top1"], right.mean(), rtol=1e-5)


def test_a_donated_step_compiles_once():
    rng = np.random.default_rng(6)
    model, mesh = Network(), make_mesh()
    mapped = data_parallel(make_train_step(model, TX, normalize=PREPARE), mesh, donate=True)
    state = jax.device_put(initial(model, TX), replicated(mesh))
    kept = state.params["conv"]["kernel"]
    for _ in range(3):
        state, _ = mapped(state, to_devices(mesh, batch_of(rng)))
    assert mapped._cache_size() == 1
    assert kept.is_deleted()


def test_averages_forget_the_start_and_then_decay():
    rng = np.random.default_rng(10)
    model, mesh = Network(), make_mesh(jax.devices()[:1])
    state = init_state(init_variables(model, 0, (8, 8, 3)), TX, ema=True)
    step = make_train_step(model, TX, normalize=PREPARE, ema_decay=0.3)
    expected = jax.device_get(state.ema)
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3):
        state, _ = run(step, mesh, state, [batch_of(rng)])
        new = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, new)
    assert_close(state.ema, expected, 1e-6)


def test_hits_break_ties_by_index():
    logits = jnp.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    labels = jnp.array([1, 1])
    assert hits(logits, labels, 1).tolist() == [False, True]
    assert hits(logits, labels, 2).tolist() == [True, True]
    assert hits(logits, labels, 5).tolist() == [True, True]


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_real_examples_only(devices):
    rng = np.random.default_rng(7)
    model, mesh = Network(), make_mesh(jax.devices()[:devices])
    variables = init_variables(model, 0, (8, 8, 3))
    data = batch_of(rng, 21)
    padded = [
        {
            "image": np.concatenate([data["image"][:16]]),
            "label": data["label"][:16],
            "mask": np.ones(16, bool),
        },
        {
            "image": np.concatenate([data["image"][16:], batch_of(rng, 11)["image"]]),
            "label": np.concatenate([data["label"][16:], batch_of(rng, 11)["label"]]),
            "mask": np.arange(16) < 5,
        },
    ]
    step = data_parallel(make_eval_step(model, normalize=PREPARE), mesh)
    scores = evaluate(step, mesh, jax.device_put(variables, replicated(mesh)), padded)
    logits = model.apply(variables, PREPARE(data["image"]), train=False)
    rank = (np.asarray(logits) > np.take_along_axis(logits, data["label"][:, None], 1)).sum(1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"])
    assert scores["count"] == 21
    np.testing.assert_allclose(scores["loss"], loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(scores["top1"], (rank < 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(scores["top5"], (rank < 5).mean(), rtol=1e-6)


def test_views_share_the_mean_of_their_logits():
    rng = np.random.default_rng(8)
    model, mesh = Network(), make_mesh()
    variables = init_variables(model, 0, (8, 8, 3))
    batch = {
        "image": rng.integers(0, 256, (8, 2, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "mask": np.ones(8, bool),
    }
    step = data_parallel(make_eval_step(model, normalize=PREPARE), mesh)
    sums = step(jax.device_put(variables, replicated(mesh)), to_devices(mesh, batch))
    views = [model.apply(variables, PREPARE(batch["image"][:, i]), train=False) for i in (0, 1)]
    loss = optax.softmax_cross_entropy_with_integer_labels(sum(views) / 2, batch["label"])
    np.testing.assert_allclose(sums["loss"], loss.sum(), rtol=1e-5)
