"""Parameters: how many, and what they start with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sop import layers

# Trainable scalars for 256 channels at 14 × 14, as docs/layers.md has them.
COUNTS = [
    (layers.GlobalAverage(hidden=100), 25_700),
    (layers.GeneralizedMean(), 1),
    (layers.GeneralizedMean(learned="channel"), 256),
    (layers.MPNCOV(), 0),
    (layers.MPNCOV(reduction=128), 33_024),
    (layers.GaussianPooling(reduction=128), 33_024),
    (layers.DropCov(), 3),
    (layers.DeepBDC(), 1),
    (layers.ISICE(), 0),
    (layers.MGCrP(), 73_752),
    (layers.MomentProbing(), 132_514),
    (layers.CompactBilinear(), 0),
    (layers.GSoP(), 230_784),
    (layers.GSoP(manner="position"), 66_368),
    (layers.GSoP(manner="fusion_avg"), 297_152),
    (layers.GSoP(manner="fusion_concat"), 658_624),
    (layers.CompactGSoP(), 232_064),
    (layers.CGD(), 1_536),
    (layers.CGD(use_bias=False), 768),
    (layers.SpatialCGD(), 168),
    (layers.ToyCGD(), 256),
    (layers.SqueezeExcitation(), 8_464),
    (layers.ECA(), 5),
    (layers.CBAM(), 8_564),
    (layers.GlobalContext(), 8_753),
    (layers.SimAM(), 0),
    (layers.GCT(), 768),
    (layers.SRM(), 1_024),
    (layers.FcaNet(), 8_192),
    (layers.CoordinateAttention(), 6_680),
    (layers.IterNorm(), 512),
    (layers.SkipPool(), 262_144),
    (layers.MaxEntropyPool(learned="channel"), 256),
    (layers.GFGP(), 66_688),
    (layers.GFGP(mode="position"), 66_688),
    (layers.GFGP(mode="sample"), 33_283),
]


@pytest.mark.parametrize(("module", "count"), COUNTS)
def test_count(module, count):
    x = jnp.zeros((1, 14, 14, 256))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.get("params", {}))) == count


def initial(module, channels):
    variables = module.init(jax.random.key(0), jnp.ones((1, 4, 4, channels)), False)
    return traverse_util.flatten_dict(variables["params"], sep="/")


def test_gsop_starts_as_published():
    """Kernels: He et al. with fan-out, 2/(outputs·area); biases: PyTorch's, U(±1/√fan-in)."""
    params = initial(layers.GSoP(32), 128)
    deviations = {
        "channel/reduce": (np.sqrt(2 / 32), 128),
        "channel/row_conv": (np.sqrt(2 / (4 * 32 * 32)), 32),
        "channel/expand": (np.sqrt(2 / 128), 128),
    }
    for name, (deviation, fan_in) in deviations.items():
        kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
        assert np.std(kernel) == pytest.approx(deviation, rel=0.1)
        bound = fan_in**-0.5
        assert 0.6 * bound < np.abs(bias).max() <= bound
    assert np.all(params["channel/row_norm/scale"] == 1)


def test_compact_gsop_starts_as_pytorch():
    params = initial(layers.CompactGSoP(32), 128)
    for name, fan_in in (("reduce", 128), ("row_conv", 32), ("expand", 128)):
        for leaf in ("kernel", "bias"):
            assert 0.6 * fan_in**-0.5 < np.abs(params[f"{name}/{leaf}"]).max() <= fan_in**-0.5


def test_cgd_starts_as_xavier_columns():
    params = initial(layers.CGD(), 512)
    for i in range(3):
        bound = np.sqrt(6 / 513)
        assert 0.9 * bound < np.abs(params[f"w{i}"]).max() <= bound
        assert not np.any(params[f"bias{i}"])
    assert not np.array_equal(params["w0"], params["w1"])


def test_hashes_come_from_the_seed_and_stay_in_constants():
    def constants(seed):
        module = layers.CompactBilinear(projected_dim=32, seed=seed)
        return module.init(jax.random.key(seed), jnp.ones((1, 2, 2, 16)), False)["constants"]

    first = constants(3)
    assert all(np.array_equal(first[name], constants(3)[name]) for name in first)
    assert any(not np.array_equal(first[name], constants(4)[name]) for name in first)
    assert set(np.unique(first["sign_1"])) == {-1, 1} and first["hash_1"].max() < 32
    # What is given is used: the other sketch gives another output.
    module = layers.CompactBilinear(projected_dim=32, seed=3)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 16))
    y = module.apply({"constants": constants(4)}, x, False)
    assert np.abs(y - module.apply({"constants": first}, x, False)).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"planes": 64}, 7),
        ({"planes": 128}, 14),
        ({}, 14),
        ({"stride": 2}, 7),
        ({"planes": 64, "stride": 1}, 14),
    ],
)
def test_gsop_halves_the_map_where_a_bottleneck_has_64_planes(options, size):
    """14 × 14 positions become 7 × 7 before the covariance; else they stay."""
    seen = []

    def record(next_function, args, kwargs, context):
        y = next_function(*args, **kwargs)
        if context.module.name == "reduce":
            seen.append(y.shape[1])
        return y

    with nn.intercept_methods(record):
        x = jnp.zeros((1, 14, 14, 256))
        module = layers.GSoP(8, **options)
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    assert seen == [size]


def test_published_constants_are_the_mersenne_twisters():
    """Against its outputs taken one by one."""
    found = layers.CompactBilinear(projected_dim=100).published_constants(7)
    twister = np.random.RandomState(1)
    raw = [int(twister.randint(0, 2**32, dtype=np.uint32)) for _ in range(28)]
    assert raw[:2] == [1791095845, 4282876139]  # the first of seed 1, as published for MT19937
    assert found["hash_1"].tolist() == [value % 100 for value in raw[:7]]
    assert found["hash_2"].tolist() == [value % 100 for value in raw[7:14]]
    assert found["sign_1"].tolist() == [2.0 * (value % 2) - 1 for value in raw[14:21]]
    assert found["sign_2"].tolist() == [2.0 * (value % 2) - 1 for value in raw[21:]]
    module, x = layers.CompactBilinear(projected_dim=100), jnp.ones((1, 2, 2, 7))
    constants = module.init(jax.random.key(0), x, False)["constants"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), dict(constants)
    )


def test_dropout_draws_in_training_only():
    module = layers.MPNCOV(dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
    whole = module.apply({}, x, False)
    dropped = module.apply({}, x, True, rngs={"dropout": jax.random.key(1)})
    kept = dropped != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-6)


def test_dropcov_drops_whole_channels_of_the_covariance_in_training():
    """All channels count alike, but half of them correlate negatively: the rate is about ⅓."""
    half = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    x = jnp.concatenate([half, -0.7 * half], axis=3)
    variables = {"params": {"conv": {"kernel": jnp.zeros((3, 1, 1))}}}
    module = layers.DropCov()
    whole = module.apply(variables, x, False)
    y = module.apply(variables, x, True, rngs={"dropout": jax.random.key(1)})
    assert 0 < np.sum(y == 0) < y.size
    rows, columns = np.triu_indices(6)
    dropped = np.asarray(y)[:, rows == columns] == 0
    np.testing.assert_array_equal(y == 0, dropped[:, rows] | dropped[:, columns])
    kept = np.asarray(y) != 0
    factors = np.asarray(y)[kept] / np.asarray(whole)[kept]  # of (1 + w)², w = 1/6, and the rate
    np.testing.assert_allclose(factors, factors[0], rtol=1e-4)
    assert factors[0] > (7 / 6) ** 2


def test_attention_keeps_half_precision_within_its_range():
    """1 + g may double an entry near float16's largest number."""
    module = layers.ToyCGD()
    x = jnp.full((1, 2, 2, 3), 6e4, jnp.float16)
    y = module.apply({"params": {"w": jnp.full(3, 1.0)}}, x, False)
    assert np.all(np.asarray(y) == np.finfo(np.float16).max)


def test_matrix_of_bilinear_cnn_has_columns_of_unit_length():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    y = layers.BilinearCNN(vectorize=False).apply({}, x, False)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.ones((2, 4)), rtol=1e-5)
    vector = layers.BilinearCNN().apply({}, x, False).reshape(2, 4, 4)
    ratio = y / vector  # the same up to the scale of each column
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
