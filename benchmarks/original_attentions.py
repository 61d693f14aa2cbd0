"""The field's attentions in their authors' PyTorch, from checkouts named as their repositories.

Each is (folder of the checkouts, x in NCHW) → module, with the options of ours: reductions to C/16,
C/32 in coordinate attention, ECA's window by C, λ = 1e-4 in SimAM. Squeeze-and-excitation's authors
published Caffe: timm's stands for it.
"""

import sys
import types

from original_layers import load

from sop.layers.eca import kernel_size


def squeeze_excitation(originals, x):
    from timm.layers import SEModule

    return SEModule(x.shape[1], rd_divisor=1)


def eca(originals, x):
    original = load(originals / "ECANet/models/eca_module.py", "original_eca")
    return original.eca_layer(x.shape[1], kernel_size(x.shape[1]))


def cbam(originals, x):
    return load(originals / "attention-module/MODELS/cbam.py", "original_cbam").CBAM(x.shape[1])


def global_context(originals, x):
    # Of an old mmcv it imports two initialisations: PyTorch's stay.
    sys.modules["mmcv"] = types.ModuleType("mmcv")
    sys.modules["mmcv.cnn"] = cnn = types.ModuleType("mmcv.cnn")
    cnn.constant_init = cnn.kaiming_init = lambda *args, **kwargs: None
    path = originals / "GCNet/mmdet/ops/gcb/context_block.py"
    return load(path, "original_gc").ContextBlock(x.shape[1], 1 / 16)


def simam(originals, x):
    path = originals / "SimAM/networks/attentions/simam_module.py"
    return load(path, "original_simam").simam_module()


def gct(originals, x):
    return load(originals / "GCT/PyTorch/GCT.py", "original_gct").GCT(x.shape[1])


def srm(originals, x):
    path = originals / "style-based-recalibration-module/models/recalibration_modules.py"
    return load(path, "original_srm").SRMLayer(x.shape[1])


def fcanet(originals, x):
    original = load(originals / "FcaNet/model/layer.py", "original_fcanet")
    return original.MultiSpectralAttentionLayer(*x.shape[1:])


def coordinate(originals, x):
    original = load(originals / "CoordAttention/coordatt.py", "original_coordinate")
    return original.CoordAtt(x.shape[1], x.shape[1])


# By the name of ours in `sop.layers`.
ATTENTIONS = {
    "SqueezeExcitation": squeeze_excitation,
    "ECA": eca,
    "CBAM": cbam,
    "GlobalContext": global_context,
    "SimAM": simam,
    "GCT": gct,
    "SRM": srm,
    "FcaNet": fcanet,
    "CoordinateAttention": coordinate,
}
