"""Every golden network: its config, and how far its logits are from the original's.

`python -m tests.golden.network_cases [NAME …]` prints the table. Weights and input are made from
the names and shapes in tests/golden/networks/NAME.json, as its original got them.
"""

import json
import sys
import zlib
from pathlib import Path

import jax
import numpy as np

from sop.models import create_model
from sop.torch_weights.engine import conversion

FOLDER = Path(__file__).parent / "networks"
TOLERANCE = 2e-4


def gsop(backbone="resnet50", **options):
    return {"backbone": backbone, "attention": {"name": "gsop", **options}}


CASES = {
    "cgd_mobilenet_100": {"backbone": "mobilenet", "attention": "cgd"},
    "cgd_preresnet20_cifar": {"backbone": "preresnet20_cifar", "attention": "cgd"},
    "cgd_preresnet56_cifar": {"backbone": "preresnet56_cifar", "attention": "cgd"},
    "cgd_resnet50": {"backbone": "resnet50", "attention": "cgd"},
    "cgd_squeezenet1_1": {"backbone": "squeezenet1_1", "attention": "cgd"},
    "cgd_wrn16_4_cifar": {"backbone": "wrn16_4_cifar", "attention": "cgd"},
    "fastmpn_resnet18_bcnn": {"backbone": "resnet18", "representation": "bcnn"},
    "fastmpn_resnet18_mpncov": {
        "backbone": "resnet18",
        "last_stride": 2,
        "representation": {"name": "mpncov", "reduction": 0},
    },
    "fastmpn_resnet50_gavp": {"backbone": "resnet50"},
    "gfgp_densenet169_max_ent": {"backbone": "densenet169", "pool": "gfgp"},
    "gfgp_resnet50_max_ent": {"backbone": "resnet50", "pool": "gfgp"},
    "gfgp_vgg16_max_ent": {"backbone": "vgg16_gfgp", "pool": "gfgp"},
    "gsop1_resnet50_channel": gsop(),
    "gsop2_resnet50_channel": {**gsop(), "representation": "mpncov"},
    "mpncov_resnet50": {"backbone": "resnet50", "representation": "mpncov"},
}

# Members of the same families, run in PyTorch for this project; heavy, but for the last two.
MORE_CASES = {
    "cgd_preresnet164_cifar": {"backbone": "preresnet164_cifar", "attention": "cgd"},
    "cgd_wrn28_10_cifar": {"backbone": "wrn28_10_cifar", "attention": "cgd"},
    "fastmpn_mpncovresnet101": {"backbone": "resnet101", "representation": "mpncov"},
    "fastmpn_resnet101_gavp": {"backbone": "resnet101"},
    "fastmpn_resnet152_none": {"backbone": "resnet152"},
    "fastmpn_resnet34_mpncov": {
        "backbone": "resnet34",
        "last_stride": 2,
        "representation": {"name": "mpncov", "reduction": 64},
    },
    "gfgp_resnet50_avg": {"backbone": "resnet50", "pool": "average"},
    "gfgp_resnet50_max": {"backbone": "resnet50", "pool": "max"},
    "gfgp_resnet50_skip": {"backbone": "resnet50", "pool": "skip"},
    "gfgp_resnetp50_max_ent": {"backbone": "resnet50", "stem": "p", "pool": "gfgp"},
    "gfgp_resnetp50_skip": {"backbone": "resnet50", "stem": "p", "pool": "skip"},
    "gfgp_resnext101_32x8d_skip": {"backbone": "resnext101_32x8d"},
    "gfgp_resnext50_32x4d_max_ent": {"backbone": "resnext50_32x4d", "pool": "gfgp"},
    "gsop1_resnet50_fusion_avg": gsop(manner="fusion_avg"),
    "gsop1_resnet50_fusion_max": gsop(manner="fusion_max"),
    "gsop1_resnet50_position": gsop(blocks="002 0002 000002 002"),
    "gsop2_resnet101_channel": {**gsop("resnet101"), "representation": "mpncov"},
    "alexnet": {"backbone": "alexnet"},
    "cgd_mobilenet_070": {"backbone": "mobilenet", "multiplier": 0.7, "attention": "cgd"},
    "cgd_squeezenet1_0": {"backbone": "squeezenet1_0", "attention": "cgd"},
    "densenet121": {"backbone": "densenet121"},
    "densenet161": {"backbone": "densenet161"},
    "densenet201": {"backbone": "densenet201"},
    "fastmpn_alexnet_mpncov": {"backbone": "alexnet", "representation": "mpncov"},
    "fastmpn_densenet121_mpncov": {"backbone": "densenet121", "representation": "mpncov"},
    "fastmpn_inception_v3_mpncov": {"backbone": "inception_v3", "representation": "mpncov"},
    "fastmpn_vgg16_bcnn": {"backbone": "vgg16", "representation": "bcnn"},
    "fastmpn_vgg16_bn_mpncov": {"backbone": "vgg16_bn", "representation": "mpncov"},
    "gfgp_densenet169_avg": {"backbone": "densenet169", "pool": "average"},
    "gfgp_densenet169_max": {"backbone": "densenet169", "pool": "max"},
    "gfgp_densenet169_skip": {"backbone": "densenet169", "pool": "skip"},
    "gfgp_vgg16_avg": {"backbone": "vgg16_gfgp", "pool": "average"},
    "gfgp_vgg16_max": {"backbone": "vgg16_gfgp"},
    "gfgp_vgg16_mod_max": {"backbone": "vgg16_mod"},
    "gfgp_vgg16_mod_max_ent": {"backbone": "vgg16_mod", "pool": "gfgp"},
    "inception_v3": {"backbone": "inception_v3"},
    "mobilenet_100": {"backbone": "mobilenet"},
    "squeezenet1_0": {"backbone": "squeezenet1_0"},
    "squeezenet1_1": {"backbone": "squeezenet1_1"},
    "timm_convnext_tiny": {"backbone": "convnext_tiny"},
    "timm_vit_base_patch16": {"backbone": "vit_base_patch16"},
    "timm_vit_small_patch16": {"backbone": "vit_small_patch16"},
    "timm_vit_tiny_patch16": {"backbone": "vit_tiny_patch16"},
    "timm_vit_tiny_patch16_avg": {"backbone": "vit_tiny_patch16", "representation": "gavp"},
    "vgg11": {"backbone": "vgg11"},
    "vgg11_bn": {"backbone": "vgg11_bn"},
    "vgg13_bn": {"backbone": "vgg13_bn"},
    "vgg19": {"backbone": "vgg19"},
    "gfgp_resnetp18_avg": {"backbone": "resnet18", "stem": "p", "pool": "average"},
    "gsop1_resnet50_fusion_concat": gsop(manner="fusion_concat"),
}


def generator(salt, name):
    """One independent stream per tensor."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}/{name}".encode())))


def tensor(salt, name, shape):
    stream, last = generator(salt, name), name.rpartition(".")[2]
    if last == "running_var" or (last == "weight" and len(shape) == 1):
        values = stream.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2 and "bias" not in last and last not in ("cls_token", "pos_embed"):
        values = stream.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    else:
        values = 0.1 * stream.standard_normal(shape)
    return values.astype(np.float32)


def original(name):
    """(description, state dict, input, logits) of a golden network."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    salt = golden["salt"]
    state_dict = {key: tensor(salt, key, tuple(shape)) for key, shape in golden["state_dict"]}
    x = generator(salt, f"{name}/input").standard_normal(golden["input"]).astype(np.float32)
    return golden, state_dict, x, np.load(FOLDER / f"{name}.logits.npy")


def converted(name):
    """(what `original` gives, config.model, `Conversion` of the state dict)."""
    given = original(name)
    _, state_dict, _, logits = given
    config = {"num_classes": logits.shape[1], **(CASES | MORE_CASES)[name]}
    return given, config, conversion(state_dict, config, ())


def compare(given, config, found):
    """(largest error relative to the largest logit, our parameters, the original's, unread ones).

    Of what `converted` gives. Unread are those that the original's forward pass never uses, which
    ours does without.
    """
    golden, state_dict, x, logits = given
    model = create_model(config)
    ours = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(found.variables, x)
    error = abs(np.asarray(ours) - logits).max() / abs(logits).max()
    count = sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]))
    statistics = ("running_mean", "running_var")
    unread = sum(state_dict[key].size for key in found.unused if not key.endswith(statistics))
    return error, count, golden["parameters"], unread


def main(names):
    print(f"{'network':30} {'error':>8} {'parameters':>12} {'original':>12}  not read there")
    for name in names or [*CASES, *MORE_CASES]:
        error, count, published, unread = compare(*converted(name))
        print(f"{name:30} {error:8.1e} {count:12,} {published:12,}  {unread or ''}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
