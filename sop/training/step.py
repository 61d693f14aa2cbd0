"""One pure per-device step with a named axis, and its mapping over a mesh of devices."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from sop.layers import BatchNorm, IterNorm
from sop.ops.annotations import Array
from sop.training.mixing import Mixing, partners
from sop.training.state import TrainState

AXIS = "batch"
_NO_DEVICE = 2**32 - 1  # in the place of a device's number, for what is drawn alike on all

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
# What a batch has of each example, by name: shape and type.
Rows = Mapping[str, tuple[tuple[int, ...], Any]]
# (params, model state, batch, key, key shared by all devices) → loss, (new model state, metrics).
Loss = Callable[[Any, Any, Batch, jax.Array, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh named `AXIS` of all devices of all processes (or those given)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of states: a whole copy on every device."""
    return NamedSharding(mesh, P())


def on_mesh(mesh: Mesh, shapes: Any) -> Any:
    """Shapes of arrays of which every device has a whole copy."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def to_devices(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """This process's rows of a batch → global arrays sharded over the mesh."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def batch_shapes(mesh: Mesh, size: int, rows: Rows) -> dict[str, jax.ShapeDtypeStruct]:
    """What `to_devices` makes of batches of `size` examples."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.ShapeDtypeStruct((size, *row), dtype, sharding=sharding)
        for name, (row, dtype) in rows.items()
    }


def data_parallel(
    step: Callable,
    mesh: Mesh,
    donate: bool = False,
    by_example: bool = False,
    options: Mapping[str, Any] | None = None,
) -> jax.stages.Wrapped:
    """Jits a per-device `step(state, batch)` over the mesh.

    The first argument and the results are replicated, the batch is split along its first axis; with
    `by_example` the results are split as the batch is. `options`: of XLA's compiler.
    `check_vma=False` gives collectives the meaning they have under `jax.pmap`: gradients stay per
    device until the step averages them.
    """
    results = P(AXIS) if by_example else P()
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=results, check_vma=False
    )
    donated = (0,) if donate else ()
    return jax.jit(mapped, donate_argnums=donated, compiler_options=dict(options or {}) or None)


def hits(logits: Float[Array, "b k"], labels: Int[Array, " b"], k: int) -> Bool[jax.Array, " b"]:
    """Whether each label is among the k largest logits: [B, K], [B] → bool [B]."""
    _, best = lax.top_k(logits, min(k, logits.shape[-1]))
    return (best == labels[:, None]).any(axis=-1)


def frozen_batch_norms(is_frozen: Callable[[str], bool]):
    """Makes the norms over batches whose parameters are frozen use, and keep, their statistics."""

    def interceptor(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and is_frozen("/".join((*module.path, "scale"))):
            if isinstance(module, BatchNorm | IterNorm):
                return call(args[0], train=False)
            if isinstance(module, nn.BatchNorm):  # in a user's own module
                still = module.clone(parent=None, use_running_average=True)
                return still.apply(module.variables, args[0])
        return call(*args, **kwargs)

    return nn.intercept_methods(interceptor)


def _mean_over_parts(function: Callable[[Any, Batch], Any], batch: Batch, parts: int) -> Any:
    """The mean of `function(i, part i)` over equal parts of a batch, one after another."""
    if parts == 1:
        return function(0, batch)
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    first = jax.tree.map(lambda x: x[0], cut)
    zeros = optax.tree.zeros_like(jax.eval_shape(function, 0, first))
    total, _ = lax.scan(add, zeros, (jnp.arange(parts), cut))
    return jax.tree.map(lambda x: x / parts, total)


def make_update(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    accumulation: int = 1,
    ema_decay: float = 0.0,
) -> Step:
    """The per-device training step for any loss; map it over axis `AXIS`.

    Gradients, metrics and BatchNorm's running statistics are averaged over the axis.

    With `accumulation` = a the device's examples are cut into a equal parts, which follow one
    another as if each were on a device of its own: n devices take the step of n·a devices, dropout
    and the statistics of a BatchNorm per device included. Only the memory of one part is needed.

    Args:
      loss: of some examples. Its first key depends on the step and on the device, its second on
        the step alone.
      tx: see `sop.training.optimizer.make_optimizer`.
      seed: of the keys.
      accumulation: parts of the device's examples; must divide their number.
      ema_decay: of the averages, where the state has them: a ← d a + (1 − d) new after each step,
        d = min(ema_decay, (1 + step) / (10 + step)), so that the start is soon forgotten.
    Returns:
      (state, batch) → (new state, the loss's metrics and 'grad_norm').
    """

    def gradient(
        state: TrainState, batch: Batch, key: jax.Array, shared_key: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        """Gradients, new model state and metrics of some examples."""
        grad = jax.grad(loss, has_aux=True)
        found = grad(state.params, state.model_state, batch, key, shared_key)
        grads, (new_model_state, metrics) = found
        return grads, new_model_state, metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        shared_key = jax.random.fold_in(key, _NO_DEVICE)
        first = lax.axis_index(AXIS) * accumulation

        def part_of_step(index, part):
            return gradient(state, part, jax.random.fold_in(key, first + index), shared_key)

        found = _mean_over_parts(part_of_step, batch, accumulation)
        if lax.axis_size(AXIS) > 1:  # else a copy of all gradients, which the update would wait for
            found = lax.pmean(found, AXIS)
        grads, new_model_state, metrics = found
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        params, ema = optax.apply_updates(state.params, updates), None
        if state.ema is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, **new_model_state}
            ema = {**state.ema, **optax.incremental_update(new, state.ema, 1 - decay)}
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state={**state.model_state, **new_model_state},
            opt_state=opt_state,
            ema=ema,
        )
        return new_state, metrics

    return train_step


def update_options(config: ConfigDict) -> dict[str, Any]:
    """What `make_update` takes of a stage's config."""
    decay = config.ema_decay or 0.0
    return {"seed": config.seed, "accumulation": config.accumulation, "ema_decay": decay}


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    normalize: Callable[[jax.Array], jax.Array],
    label_smoothing: float = 0.0,
    frozen_batch_norm: Callable[[str], bool] = lambda name: False,
    mixing: Mixing | None = None,
    **options: Any,
) -> Step:
    """The training step of classification; see `make_update`, which takes the other options.

    The loss is the mean softmax cross-entropy of the device's examples, with targets
    (1 − ε) one-hot + ε/K where ε = `label_smoothing`.

    Args:
      model: called as `model.apply(variables, images, train=True)`.
      tx: see `sop.training.optimizer.make_optimizer`.
      normalize: batch images as they arrive (uint8) → what the model takes.
      frozen_batch_norm: path of a BatchNorm's scale → whether its statistics stand still.
      mixing: of the examples in pairs, see `sop.training.mixing.make_mixing`; its key depends on
        the step alone. The targets are mixed as the images are, and so are 'top1' and 'top5'.
    Returns:
      (state, {'image': [b, H, W, 3], 'label': int32 [b]}) → (new state, float32 scalars 'loss',
      'top1', 'top5', 'grad_norm').
    """

    def loss(params, model_state, batch, key, mixing_key):
        images, labels = batch["image"], batch["label"]
        if mixing is not None:
            images, share = mixing(mixing_key, images)
        images = normalize(images)

        def mixed(x: jax.Array) -> jax.Array:
            return x if mixing is None else share * x + (1 - share) * partners(x)

        def mixed_hits(k: int) -> jax.Array:
            if mixing is None:
                return hits(logits, labels, k)
            return share * hits(logits, labels, k) + (1 - share) * hits(logits, partners(labels), k)

        with frozen_batch_norms(frozen_batch_norm):
            logits, new_model_state = model.apply(
                {"params": params, **model_state},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
        targets = mixed(jax.nn.one_hot(labels, logits.shape[-1]))
        targets = optax.smooth_labels(targets, label_smoothing)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        metrics = {
            "loss": value,
            "top1": mixed_hits(1).mean(),
            "top5": mixed_hits(5).mean(),
        }
        return value, (new_model_state, metrics)

    return make_update(loss, tx, **options)


def make_forward(
    model: nn.Module, *, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """(variables, batch images uint8 [b, (V,) H, W, 3]) → logits [b, K].

    The V views of an example (mirror image, ten crops) share one prediction, the mean of their
    logits.
    """

    def forward(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        views = images.shape[1] if images.ndim == 5 else 1
        images = normalize(images.reshape(-1, *images.shape[-3:]))
        logits = jnp.asarray(model.apply(variables, images, train=False))
        return logits.reshape(-1, views, logits.shape[-1]).mean(axis=1)

    return forward


def make_eval_step(
    model: nn.Module, *, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[dict[str, Any], Batch], Metrics]:
    """The per-device evaluation step; map it over axis `AXIS`.

    Returns:
      (variables, {'image', 'label', 'mask'}) → float32 sums over the real examples of the whole
      batch: 'loss', 'top1', 'top5' and 'count'. Images are those of `make_forward`; padding, where
      mask is False, never counts.
    """

    forward = make_forward(model, normalize=normalize)

    def eval_step(variables: dict[str, Any], batch: Batch) -> Metrics:
        labels, mask = batch["label"], batch["mask"]
        logits = forward(variables, batch["image"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        sums = {
            "loss": jnp.sum(loss, where=mask),
            "top1": jnp.sum(hits(logits, labels, 1), where=mask, dtype=jnp.float32),
            "top5": jnp.sum(hits(logits, labels, 5), where=mask, dtype=jnp.float32),
            "count": jnp.sum(mask, dtype=jnp.float32),
        }
        return lax.psum(sums, AXIS)

    return eval_step
