"""The originals' own layers in PyTorch, from checkouts named as their repositories.

`their_*`: (folder of the checkouts, x in NCHW) → module or function of x, or a function that makes
such a one. PyTorch is imported where it is needed.
"""

import importlib
import importlib.util
import sys

GSOP = "Global-Second-order-Pooling-Convolutional-Networks"


def load(path, name):
    """A file of the originals as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _mpncov(originals):
    return load(originals / "fast-MPN-COV/src/representation/MPNCOV.py", "original_mpncov")


def their_isqrt_cov(num_iters):
    return lambda originals, x: _mpncov(originals).MPNCOV(num_iters, input_dim=x.shape[1])


def their_bilinear(originals, x):
    path = originals / "fast-MPN-COV/src/representation/BCNN.py"
    return load(path, "original_bcnn").BCNN(input_dim=x.shape[1])


def their_compact_bilinear(originals, x):
    import torch

    cbp = load(originals / "fast-MPN-COV/src/representation/CBP.py", "original_cbp")

    class OldTorch:
        """`torch` with the functions of 2018 that CBP.py calls, on pairs (real, imaginary)."""

        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def fft(pairs, _):
            return torch.view_as_real(torch.fft.fft(torch.view_as_complex(pairs)))

        @staticmethod
        def ifft(pairs, _):
            return torch.view_as_real(torch.fft.ifft(torch.view_as_complex(pairs.contiguous())))

    cbp.torch = OldTorch()
    return cbp.CBP(projDim=8192, input_dim=x.shape[1])


def their_gsop(originals, x):
    import types

    import torch

    root = originals / GSOP / "torchvision/models"
    # Its package is called torchvision and would hide, or be hidden by, the real one.
    package = types.ModuleType("original_gsop")
    package.__path__ = [str(root)]
    sys.modules["original_gsop"] = package
    block = load(root / "resnet.py", "original_gsop.resnet").Bottleneck
    planes = x.shape[1] // 4
    found = block(x.shape[1], planes, attention="1", att_dim=128)

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in (
                "conv_for_DR",
                "bn_for_DR",
                "row_bn",
                "row_conv_group",
                "fc_adapt_channels",
            ):
                setattr(self, name, getattr(found, name))
            self.relu, self.relu_normal, self.sigmoid = found.relu, found.relu_normal, found.sigmoid

        def forward(self, x):
            return x * block.chan_att(self, x)

    return Attention()


def their_cgd(originals, x):
    path = originals / "Compact-Global-Descriptor/attention_best.py"
    return load(path, "original_cgd").AttentionLayer(x.shape[1], x.shape[1])


def torch_max_entropy(x, lam, window, stride, padding):
    """The equation with unfold and softmax; the original has a CUDA kernel only."""
    import torch
    import torch.nn.functional as F

    batch, channels, height, width = x.shape
    places = F.unfold(x, window, stride=stride, padding=padding)
    places = places.view(batch, channels, window**2, -1)
    scores = lam.reshape(-1, lam.shape[1], 1, 1) * places
    if padding:
        inside = F.unfold(torch.ones_like(x[:1, :1]), window, stride=stride, padding=padding)
        scores = scores.masked_fill(inside.view(1, 1, window**2, -1) == 0, float("-inf"))
    y = (torch.softmax(scores, 2) * places).sum(2)
    rows, columns = ((n + 2 * padding - window) // stride + 1 for n in (height, width))
    return y.view(batch, channels, rows, columns)


def their_max_entropy(window, stride, padding):
    def make(originals, x):
        import torch

        lam = torch.ones(1, 1, 1, 1)
        return lambda x: torch_max_entropy(x, lam, window, stride, padding)

    return make


def their_gfgp(originals, x):
    """GFGP's layers with the equation in the place of its CUDA kernel."""
    import torch

    channels = x.shape[1]
    to_lam = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Conv2d(channels, channels // 2, 1),
        torch.nn.BatchNorm2d(channels // 2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(channels // 2, channels, 1),
        torch.nn.BatchNorm2d(channels),
        torch.nn.Sigmoid(),
    )

    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_lam = to_lam

        def forward(self, x):
            return torch_max_entropy(x, self.to_lam(x), 2, 2, 0)

    return Pool()


def _covariance(x):
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    return x @ x.transpose(1, 2) / x.shape[2]


def _upper_triangle(y):
    import torch

    return y[:, *torch.triu_indices(*y.shape[1:], device=y.device)]


def _without_gpu():
    """Originals that move tensors to a GPU by name leave them where they are if there is none."""
    import torch

    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_: tensor


def their_covariance(originals, x):
    return _mpncov(originals).MPNCOV(is_sqrt=False, input_dim=x.shape[1])


def their_element(originals, x):
    covariance, root = their_covariance(originals, x), their_bilinear(originals, x)
    return lambda x: root._signed_sqrt(covariance(x))


def their_gaussian(originals, x):
    """The embedding in the fewest operations, and the root of fast MPN-COV."""
    import torch

    original = _mpncov(originals)

    def gaussian(x):
        mean = x.flatten(2).mean(2, keepdim=True)
        one = torch.ones_like(mean[:, :1])
        moment = original.CovpoolLayer(x) + mean @ mean.mT
        rows = torch.cat([moment, mean], 2), torch.cat([mean.mT, one], 2)
        return original.TriuvecLayer(original.SqrtmLayer(torch.cat(rows, 1), 5))

    return gaussian


def their_eigh(originals, x):
    _without_gpu()
    path = originals / "DifferentiableSVD/src/representation/SVD_Original.py"
    return load(path, "original_eigh").SVD_Original(input_dim=x.shape[1])


def their_log(originals, x):
    """The equation; the original is MATLAB."""
    import torch

    def log(x):
        values, vectors = torch.linalg.eigh(_covariance(x))
        return _upper_triangle((vectors * torch.log(values + 1e-3)[:, None]) @ vectors.mT)

    return log


def their_drop_cov(originals, x):
    import types

    import torch

    _without_gpu()
    # Packages of these names, of its folders.
    for name, folder in (("representation", "representation"), ("original_dropcov", "models")):
        package = types.ModuleType(name)
        package.__path__ = [str(originals / "DropCov/CNNs" / folder)]
        sys.modules[name] = package
    network = importlib.import_module("original_dropcov.ResNet_ACD")

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cov, self.weigh = network.Covariance(), network.eca_layer(x.shape[1])

        def forward(self, x):
            x = network.ResNet_ACD.balance_rate(self, *self.weigh(x))
            return network.Triuvec.apply(self.cov(x))

    return Head()


def their_pade_lyapunov(originals, x):
    """The covariance in the fewest operations; the original's class has one of its own."""
    path = originals / "FastDifferentiableMatSqrt/Decorrelated BN/torch_utils.py"
    root = load(path, "original_pade").MPA_Lya
    return lambda x: _upper_triangle(root.apply(_covariance(x)))


def their_eigh_pade(originals, x):
    _without_gpu()
    path = originals / "DifferentiableSVD/src/representation/SVD_Pade.py"
    return load(path, "original_eigh_pade").SVD_Pade(input_dim=x.shape[1])


def their_deep_bdc(originals, x):
    path = originals / "DeepBDC/methods/bdc_module.py"
    return load(path, "original_bdc").BDC(input_dim=tuple(x.shape[1:]))


def their_isice(originals, x):
    path = originals / "iSICE/src/representation/SICE.py"
    make = load(path, "original_sice").SICE
    return make(iterNum=5, sparsity_val=0.01, sice_lrate=1.0, input_dim=x.shape[1])


def their_iter_norm(originals, x):
    path = originals / "IterNorm-pytorch/extension/normailzation/iterative_normalization.py"
    # PyTorch has renamed what autograd saves.
    source = path.read_text(encoding="utf-8").replace("saved_variables", "saved_tensors")
    namespace = {"__name__": "original_iter_norm"}
    exec(compile(source, path, "exec"), namespace)
    norm = namespace["IterNorm"](x.shape[1], num_channels=64)
    norm.running_wm = norm.running_wm.clone()  # made by `expand`, which is not written to any more
    return norm


def _tokens(x):
    """[B, C, H, W] → the first position as class token, and the others as words [B, n, C]."""
    x = x.flatten(2).transpose(1, 2)
    return x[:, 0], x[:, 1:]


def their_mgcrp(originals, x):
    import types

    import torch

    # Without what its __init__ imports, of an old timm.
    package = types.ModuleType("sot_src")
    package.__path__ = [str(originals / "SoT/sot_src")]
    sys.modules["sot_src"] = package
    pooling = importlib.import_module("sot_src.representation").MultiHeadPooling
    normalization = {"type": "svPN", "iterNum": 1, "svNum": 1, "input_dim": 24}
    pool = pooling(x.shape[1], 6, 24, normalization=normalization)

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = pool

        def forward(self, x):
            first, words = _tokens(x)
            return torch.cat([first, self.pool(words)], 1)

    return Head()


def their_moment_probing(originals, x):
    """The vector that its two classifiers see, halved as their mean is."""
    import torch

    path = originals / "Moment-Probing/models/representation/MP.py"
    # What it imports of an old timm its head for transformers does not use.
    source = path.read_text(encoding="utf-8")
    source = source.replace("from timm.models.layers import SelectAdaptivePool2d", "")
    wanted = "from timm.models.fx_features import register_notrace_module"
    source = source.replace(wanted, "register_notrace_module = lambda module: module")
    namespace = {"__name__": "original_moment_probing"}
    exec(compile(source, path, "exec"), namespace)
    probe = namespace["Moment_Probing_ViT"](in_dim=x.shape[1])
    probe.classifier1 = torch.nn.ZeroPad1d((0, 2883))
    probe.classifier2 = torch.nn.ZeroPad1d((x.shape[1], 0))

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.probe = probe

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return self.probe(tokens[:, 0], tokens)

    return Head()


NORMALIZATIONS = {
    "newton_schulz": their_isqrt_cov(5),
    "pade_lyapunov": their_pade_lyapunov,
    "eigh": their_eigh,
    "eigh_pade": their_eigh_pade,
    "log": their_log,
    "element": their_element,
    "none": their_covariance,
}
REPRESENTATIONS = {
    "GaussianPooling": their_gaussian,
    "DropCov": their_drop_cov,
    "DeepBDC": their_deep_bdc,
    "ISICE": their_isice,
}
