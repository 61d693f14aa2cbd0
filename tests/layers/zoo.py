"""Every layer in every manner, at a small size, with variables to run it on."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import traverse_util

from sop import layers

CHANNELS = 8
WINDOW = {"window": 3, "strides": 2, "padding": 1}

REPRESENTATIONS: dict[str, Callable] = {
    "GlobalAverage": layers.GlobalAverage(),
    "GlobalAverage hidden": layers.GlobalAverage(hidden=5),
    "GlobalMax": layers.GlobalMax(),
    "GeneralizedMean": layers.GeneralizedMean(),
    "GeneralizedMean channel": layers.GeneralizedMean(0.5, "channel"),
    "GeneralizedMean fixed": layers.GeneralizedMean(2.0, None),
    "MPNCOV": layers.MPNCOV(),
    "MPNCOV reduced": layers.MPNCOV(reduction=4, num_iters=3),
    "MPNCOV matrix": layers.MPNCOV(vectorize=False, num_iters=1),
    "MPNCOV eigh": layers.MPNCOV(normalization="eigh"),
    "MPNCOV eigh 0.3": layers.MPNCOV(reduction=4, normalization="eigh", alpha=0.3),
    "MPNCOV pade_lyapunov": layers.MPNCOV(normalization="pade_lyapunov"),
    "MPNCOV log": layers.MPNCOV(normalization="log"),
    "MPNCOV element": layers.MPNCOV(normalization="element", vectorize=False),
    "MPNCOV none": layers.MPNCOV(normalization="none"),
    "GaussianPooling": layers.GaussianPooling(num_iters=3),
    "GaussianPooling reduced": layers.GaussianPooling(reduction=4, num_iters=2, beta=0.3),
    "DropCov": layers.DropCov(reduction=4),
    "DeepBDC": layers.DeepBDC(),
    "ISICE": layers.ISICE(num_steps=3),
    "MGCrP": layers.MGCrP(heads=2, dim=3, num_iters=2),
    "MomentProbing": layers.MomentProbing(width=21, heads=3),
    "BilinearCNN": layers.BilinearCNN(),
    "BilinearCNN matrix": layers.BilinearCNN(vectorize=False),
    "CompactBilinear": layers.CompactBilinear(projected_dim=16),
}
ATTENTIONS = {
    "GSoP channel": layers.GSoP(4),
    "GSoP position": layers.GSoP(4, "position"),
    "GSoP position grid": layers.GSoP(4, "position", grid=3),
    "GSoP fusion_avg": layers.GSoP(4, "fusion_avg", stride=2),
    "GSoP fusion_max": layers.GSoP(4, "fusion_max"),
    "GSoP fusion_concat": layers.GSoP(4, "fusion_concat"),
    "CompactGSoP": layers.CompactGSoP(4),
    "CGD": layers.CGD(),
    "CGD linear": layers.CGD(use_bias=False, nonlinear=False),
    "SpatialCGD": layers.SpatialCGD(),
    "ToyCGD": layers.ToyCGD(),
    "SqueezeExcitation": layers.SqueezeExcitation(4),
    "ECA": layers.ECA(),
    "CBAM": layers.CBAM(4),
    "GlobalContext": layers.GlobalContext(4),
    "SimAM": layers.SimAM(),
    "GCT": layers.GCT(),
    "SRM": layers.SRM(),
    "FcaNet": layers.FcaNet(4),
    "CoordinateAttention": layers.CoordinateAttention(),
}
LOCAL_POOLINGS = {
    "MaxPool": layers.MaxPool(**WINDOW),
    "AveragePool": layers.AveragePool(**WINDOW, ceil_mode=True),
    "SkipPool": layers.SkipPool(**WINDOW),
    "NoPool": layers.NoPool(**WINDOW),
    "MaxEntropyPool": layers.MaxEntropyPool(**WINDOW),
    "MaxEntropyPool constant": layers.MaxEntropyPool(**WINDOW, learned="constant"),
    "MaxEntropyPool channel": layers.MaxEntropyPool(**WINDOW, learned="channel"),
    "GFGP": layers.GFGP(**WINDOW),
    "GFGP softplus": layers.GFGP(**WINDOW, activation="softplus"),
    "GFGP sample": layers.GFGP(**WINDOW, mode="sample", hidden_node=3),
    "GFGP position": layers.GFGP(**WINDOW, mode="position"),
}
NORMS = {
    "IterNorm": layers.IterNorm(num_iters=3),
    "IterNorm groups": layers.IterNorm(group_size=4, num_iters=2),
}
LAYERS = {**REPRESENTATIONS, **ATTENTIONS, **LOCAL_POOLINGS, **NORMS}


def channels(name: str) -> int:
    return {"GSoP fusion_concat": 64, "FcaNet": 16}.get(name, CHANNELS)


def variables(module, x) -> dict:
    """As `module.init` gives them, but without compiling it and with no zeros among them."""
    shapes = _shapes(module, x.shape)
    if "constants" in shapes:
        return module.init(jax.random.key(0), x, False)
    generator = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1] in ("scale", "var", "lam", "power"):
            return generator.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        # An accumulated product keeps the size of its factors.
        size = np.prod(shape.shape[:-1], initial=1)
        return (generator.standard_normal(shape.shape) / np.sqrt(size)).astype(np.float32)

    flat = traverse_util.flatten_dict(shapes)
    return traverse_util.unflatten_dict({path: draw(path, flat[path]) for path in flat})


def changes_in_training(given: dict) -> bool:
    return "batch_stats" in given


@functools.cache
def _shapes(module, shape) -> dict:
    """Of the variables, whatever the type of the input; many tests ask for the same."""
    x = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
