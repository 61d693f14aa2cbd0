"""A look inside a network: where it looks, and what each method says of an image.

All is taken by Flax's `nn.intercept_methods`, which sees the input and the output of each module,
and from what a module sows where there is no module of its own: the networks know nothing of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax

from sop import ops
from sop.errors import UsageError
from sop.layers import GFGP, MPNCOV, BatchNorm, CompactGSoP, IterNorm, MaxEntropyPool
from sop.layers.gate import Gate
from sop.layers.gsop import ChannelWeights, PositionWeights
from sop.training.step import data_parallel
from sop.using import layers
from sop.using.run import Run

_FEATURES = "features"
_NORMS = (BatchNorm, IterNorm, nn.BatchNorm)


class Look:
    """Looks into a run at one layer; calls give what `NAMES` lists.

    Args:
      run: whose network.
      image_shape: (H, W, 3) of the transformed images.
      layer: of the heat map and of Grad-CAM, see `sop.using.layers.find`; None: as published, the
        first convolution of the last stage's second block, and for Grad-CAM the last feature map.
    Raises:
      UsageError: there is no such layer, or it puts out no map.
    """

    def __init__(self, run: Run, image_shape: tuple[int, ...], layer: str | None = None):
        known = run.layers(image_shape)
        self.layer = default_layer(known) if layer is None else layers.find(layer, known)
        target = _FEATURES if layer is None else self.layer
        maps = [path for path, (_, output) in known.items() if len(output.shape) == 4]
        for path in (self.layer, target):
            if path not in maps:
                example = f", such as '{maps[-1]}'" if maps else ""
                raise UsageError(
                    f"Layer '{path}' puts out {list(known[path][1].shape[1:])} for an image, which "
                    f"has no positions: name one with a map [H, W, C]{example}."
                )
        self.normed = following_norm(self.layer, known)
        self._run = run
        step = _make_step(run, self.normed or self.layer, target, known)
        self._step = data_parallel(step, run.mesh, by_example=True)

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        """What the network makes of some images.

        Args:
          images: uint8 [n, H, W, 3], transformed.
          classes: int [n], whose logit Grad-CAM derives; −1: that of the likeliest class.
        Returns:
          Arrays with a row for each image, float32; 'KIND/PATH' are of the layer at PATH.

          - 'logits' [n, K];
          - 'heat' [n, h, w]: mean over channels of |layer's map after its ReLU|;
          - 'grad_cam' [n, h, w]: ReLU(Σ_c α_c A_c), α_c the mean over positions of ∂logit/∂A_c;
          - 'channel_weights/PATH' [n, C] and 'position_weights/PATH' [n, H, W]: of GSoP;
          - 'gates/PATH' [n, C] or [n, H, W]: g of CGD, x becomes x (1 + g);
          - 'weights/PATH' [n, C], [n, H, W] or [n, H, W, C]: g of the field's attentions, x becomes
            x g;
          - 'lambda/PATH' [n, C], [n, 1] or [n, H', W', C]: of GFGP;
          - 'pooling/PATH' [n, H', W']: where soft pooling stands between average (0) and maximum
            (1) of its windows, Σ_c (y − average) / Σ_c (maximum − average); NaN where these agree;
          - 'covariance/PATH' and 'root/PATH' [n, d, d]: of MPN-COV before and after normalisation;
            'spectrum/PATH' and 'root_spectrum/PATH' [n, d]: their eigenvalues, in falling order.
        """
        batch = {"image": images, "class": classes.astype(np.int32)}
        found = self._run.by_device(self._step, batch)
        found = {name: np.asarray(value, np.float32) for name, value in found.items()}
        for name in list(found):
            kind, _, path = name.partition("/")
            if kind in _SPECTRA:
                found[f"{_SPECTRA[kind]}/{path}"] = np.linalg.eigvalsh(found[name])[:, ::-1]
        return found


_SPECTRA = {"covariance": "spectrum", "root": "root_spectrum"}


def default_layer(known: Mapping[str, Any]) -> str:
    """The first convolution of the last stage's second block, or the last feature map.

    The latter where the layers are not numbered in stages ('layer4_1', 'block3_layer_1'); where a
    stage has one block, it stands for the second.
    """
    stages: dict[str, list[str]] = {}
    for name in layers.top(known):
        if numbered := re.fullmatch(r"(\D+\d+\D*)_\d+", name):
            stages.setdefault(numbered[1], []).append(name)
    if len(stages) < 2:
        return _FEATURES
    block = list(stages.values())[-1][:2][-1]
    inside = f"{layers.with_prefix(block, known)}/"
    convolutions = (
        path for path, (kind, _) in known.items() if path.startswith(inside) and _is_conv(kind)
    )
    return next(convolutions, _FEATURES)


def following_norm(path: str, known: Mapping[str, tuple[type, Any]]) -> str | None:
    """The batch norm between a convolution and its ReLU; None: there is none, or no convolution."""
    if not _is_conv(known[path][0]):
        return None
    parent, order = path.rpartition("/")[0], list(known)
    for other in order[order.index(path) + 1 :]:
        kind = known[other][0]
        if other.rpartition("/")[0] == parent and (_is_conv(kind) or issubclass(kind, _NORMS)):
            return other if issubclass(kind, _NORMS) else None
    return None


def _is_conv(kind: type) -> bool:
    return issubclass(kind, nn.Conv)


def _make_step(run: Run, watched: str, target: str, known: Mapping[str, tuple[type, Any]]):
    """(variables, {'image', 'class'}) → what `Look` returns, spectra left out."""
    has_relu = _is_conv(known[watched][0]) or issubclass(known[watched][0], _NORMS)
    shape, dtype = known[target][1].shape[1:], known[target][1].dtype

    def step(variables, batch):
        images = run.normalize(batch["image"])

        def forward(change):
            witness = _Witness(target, watched, change)
            with nn.intercept_methods(witness):
                logits, state = run.model.apply(
                    variables, images, train=False, mutable=["intermediates"]
                )
            classes = jnp.where(batch["class"] < 0, logits.argmax(axis=1), batch["class"])
            score = jnp.take_along_axis(logits, classes[:, None], axis=1).sum()
            gates = flatten_dict(state.get("intermediates", {}))
            said = witness.said | {
                f"gates/{'/'.join(path[:-1])}": _squeezed(value[-1])
                for path, value in gates.items()
                if path[-1] == "gate"
            }
            return score, (logits, witness.maps, said)

        change = jnp.zeros((len(images), *shape), dtype)
        slope, (logits, maps, said) = jax.grad(forward, has_aux=True)(change)
        heat, values = (maps[path].astype(jnp.float32) for path in (watched, target))
        heat = nn.relu(heat) if has_relu else heat
        weights = slope.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        grad_cam = nn.relu((weights * values).sum(axis=-1))
        return {"logits": logits, "heat": jnp.abs(heat).mean(axis=-1), "grad_cam": grad_cam, **said}

    return step


class _Witness:
    """Sees every module's calls, notes what methods say, and adds `change` to one's output.

    Attributes:
      maps: the outputs of the modules `target` and `watched`, by path.
      said: 'KIND/PATH' → array, see `Look`.
    """

    def __init__(self, target: str, watched: str, change: jax.Array):
        self._target, self._wanted, self._change = target, (target, watched), change
        self._reduced: dict[str, jax.Array] = {}
        self.maps: dict[str, jax.Array] = {}
        self.said: dict[str, jax.Array] = {}

    def __call__(self, call, args, kwargs, context):
        y = call(*args, **kwargs)
        module = context.module
        path = "/".join(module.path)
        if context.method_name == "gate" and isinstance(module, Gate):
            gates = jnp.broadcast_to(y, (len(args[0]), *y.shape[1:]))
            self.said[f"weights/{path}"] = _squeezed(gates)
        if context.method_name != "__call__" or not args:
            return y
        self._hear(module, path, args[0], y)
        if path in self._wanted:
            self.maps[path] = y
        return y + self._change if path == self._target else y

    def _hear(self, module: nn.Module, path: str, x: jax.Array, y: jax.Array) -> None:
        parent = "/".join(module.path[:-1])
        match module, module.parent, module.name:
            case ChannelWeights(), *_:
                self.said[f"channel_weights/{parent}"] = _squeezed(y)
            case PositionWeights(), *_:
                self.said[f"position_weights/{parent}"] = _squeezed(y)
            case _, CompactGSoP(), "expand_norm":
                self.said[f"channel_weights/{parent}"] = nn.sigmoid(y)
            case _, GFGP() as pool, "excite_norm":
                activate = nn.sigmoid if pool.activation == "sigmoid" else nn.softplus
                self.said[f"lambda/{parent}"] = _squeezed(activate(y))
            case _, MPNCOV(), "reduce_norm":
                self._reduced[parent] = nn.relu(y)
            case ((GFGP() | MaxEntropyPool() as pool), *_):
                self.said[f"pooling/{path}"] = _between(pool, x, y)
            case MPNCOV(), *_:
                self._covariance(module, path, self._reduced.get(path, x), y)

    def _covariance(self, module: MPNCOV, path: str, x: jax.Array, y: jax.Array) -> None:
        self.said[f"covariance/{path}"] = ops.covariance(x)
        if module.normalization != "none":
            self.said[f"root/{path}"] = _square(y, x.shape[-1]) if y.ndim == 2 else y


def _squeezed(x: jax.Array) -> jax.Array:
    """[B, 1, 1, C] → [B, C], [B, H, W, 1] → [B, H, W]; other shapes as they are."""
    if x.ndim == 4 and x.shape[1:3] == (1, 1):
        return x[:, 0, 0]
    return x[..., 0] if x.ndim == 4 and x.shape[-1] == 1 else x


def _between(pool: GFGP | MaxEntropyPool, x: jax.Array, y: jax.Array) -> jax.Array:
    """Where outputs y stand between average (0) and maximum (1) of their windows: [B, H, W]."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    average = ops.max_entropy_pool(x, 0.0, **pool.geometry())
    width = (pool.reduce(x, -jnp.inf, lax.max) - average).sum(axis=-1)
    return jnp.where(width > 0, (y - average).sum(axis=-1) / width, jnp.nan)


def _square(triangle: jax.Array, size: int) -> jax.Array:
    """The symmetric matrices [B, d, d] whose upper triangles these are."""
    rows, columns = np.triu_indices(size)
    matrix = jnp.zeros((len(triangle), size, size), triangle.dtype)
    return matrix.at[:, rows, columns].set(triangle).at[:, columns, rows].set(triangle)
