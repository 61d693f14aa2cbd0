"""Layers on inputs of every size, scale and type."""

import random

import jax
import jax.numpy as jnp
import numpy as np

from tests.layers import zoo
from tests.torture.trial import Bench, Trial

_TYPES = {"float16": 4.0, "bfloat16": 30.0, "float32": 30.0}  # → largest exponent of a scale
# Up to which gradients are promised: beyond, products of two features leave float32, and with them
# the gradients of weights that such products are multiplied by.
_LARGEST_WITH_GRADIENT = 15.0


def layer(rng: random.Random, bench: Bench) -> Trial:
    """Finite in, finite out and back; what is not finite comes out as such, of its image alone."""
    name = rng.choice(list(zoo.LAYERS))
    dtype = rng.choice(list(_TYPES))
    wide = rng.random() < 0.3
    train = rng.random() < 0.5
    shape = (rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 5), zoo.channels(name))
    contents = np.random.default_rng(rng.randrange(2**32))
    spoiled = rng.choice([None, None, np.nan, np.inf])
    x, exponent, described = _input(contents, shape, _TYPES[dtype])
    if spoiled is not None:
        x[0, 0, 0, :] = spoiled

    def run() -> None:
        with jax.enable_x64(wide):
            array = jnp.asarray(x, dtype)
            if spoiled is None:
                array = jnp.clip(array, jnp.finfo(dtype).min, jnp.finfo(dtype).max)
            y, gradients = _outputs_and_gradients(zoo.LAYERS[name], array, train)
        if spoiled is None:
            promised = {"output": y}
            if exponent <= _LARGEST_WITH_GRADIENT:
                promised["gradient"] = gradients
            for what, tree in promised.items():
                finite = all(bool(jnp.isfinite(each).all()) for each in jax.tree.leaves(tree))
                assert finite, f"the {what} is not finite"
            assert gradients[0].dtype == array.dtype, gradients[0].dtype
        else:
            finite = np.isfinite(np.asarray(y, np.float64)).reshape(len(y), -1).all(1)
            assert not finite[0], f"{spoiled} is hidden"
            assert train or finite[1:].all(), f"{spoiled} of one image reaches others"

    wideness = ", x64" if wide else ""
    training = ", train" if train else ""
    content = described if spoiled is None else f"{described} with {spoiled}"
    return Trial(f"{name} of {dtype}{list(shape)}{wideness}{training}: {content}", run)


def _outputs_and_gradients(module, x, train):
    variables = zoo.variables(module, x)
    others = {key: value for key, value in variables.items() if key != "params"}

    def run(x, params):
        def apply(x, params):
            given = {**others, "params": params}
            rngs = {"dropout": jax.random.key(0)}
            return module.apply(given, x, train, mutable=["batch_stats"], rngs=rngs)[0]

        y, pullback = jax.vjp(apply, x, params)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, pullback(cotangent.astype(y.dtype))

    quick = {"xla_backend_optimization_level": 0}  # compiling takes nearly all of the time
    return jax.jit(run, compiler_options=quick)(x, variables.get("params", {}))


def _input(generator, shape, largest):
    """float64 values, the exponent of their scale, and what they are in words."""
    x = generator.standard_normal(shape)
    exponent, said = 0.0, []
    if generator.random() < 0.5:
        exponent = generator.uniform(-largest - 8, largest)
        x *= 10**exponent
        said.append(f"times 1e{exponent:.0f}")
    if generator.random() < 0.3:
        x[..., generator.random(shape[-1]) < 0.5] = generator.choice([0, 1, 3.3])
        said.append("constant channels")
    if generator.random() < 0.2:
        x[:] = x[:, :1, :1]
        said.append("constant maps")
    if generator.random() < 0.2:
        x[generator.integers(len(x))] = 0
        said.append("an image of zeros")
    if generator.random() < 0.2:
        x.flat[generator.integers(x.size)] = 10 ** min(largest, 9)
        said.append("one outlier")
    return x, exponent, ", ".join(said) or "normal"
