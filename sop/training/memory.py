"""What a run needs of memory, known before its first step.

At least, before anything is compiled: a device holds the state, the batch and, for a moment, the
largest result of a convolution or a matrix product, which no compiler leaves out. In all, once the
step is compiled: the compiler has laid out its memory then.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sop.errors import UsageError

_TRANSFORMS = {"batch_size": "train_transforms", "eval_batch_size": "eval_transforms"}
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_PRODUCTS = ("conv_general_dilated", "dot_general")
# Of the control group that a container runs in, versions 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Rows(Protocol):
    """This process's share of some batches."""

    row_shape: tuple[int, ...]  # of an example's image, its views included
    batches_ahead: int  # that are in the host's memory at once


@dataclasses.dataclass(frozen=True)
class _Room:
    """Memory somewhere, in bytes, and what is taken of it before any batch.

    `cuts`: whether it holds parts of a batch one after another.
    """

    where: str
    size: int
    taken: int
    cuts: bool = False

    def check(self, key: str, batch_size: int, one: int, shares: int, rows: Rows) -> None:
        """Refuses batches of which this has to hold `one` for each example of its share."""
        need, left = one * (batch_size // shares), self.size - self.taken
        if need <= left:
            return
        said = f"but {self.where} has {readable(self.size)}"
        cut = "raise config.accumulation, or " if self.cuts and key == "batch_size" else ""
        if most := left // one * shares:
            raise UsageError(
                f"config.{key} = {batch_size} needs at least {readable(need + self.taken)}, "
                f"{said}: {cut}set at most {most}."
            )
        height, width = rows.row_shape[-3:-1]
        raise UsageError(
            f"One image of {height}×{width} pixels needs at least {readable(one + self.taken)}, "
            f"{said}: make it smaller in config.input.{_TRANSFORMS[key]}."
        )


def check_memory(
    config: ConfigDict,
    batches: Mapping[str, Rows],
    model: nn.Module,
    variables: Mapping[str, Any],
    state: Any,
    mesh: Mesh,
    cached: int,
) -> None:
    """Refuses batches, images and networks that the devices or this host certainly cannot hold.

    Args:
      config: of one stage.
      batches: 'batch_size', 'eval_batch_size' → the batches of that size.
      model: called as `model.apply(variables, images, train=False)`.
      variables, state: shapes; the state holds the variables and what belongs to them in training.
      mesh: all devices.
      cached: bytes of images that this host keeps.
    Raises:
      UsageError: naming the key and what would fit.
    """
    host = _Room("this host", host_memory(), cached)
    if cached > host.size:
        raise UsageError(
            f"config.input.cache needs {readable(cached)}, but this host has "
            f"{readable(host.size)}: set --config.input.cache=False."
        )
    size = device_memory(mesh.local_devices, host.size)
    device = _Room("a device", size, _bytes(state), cuts=True)
    if device.taken > device.size:
        raise UsageError(
            f"The parameters of config.model, with what belongs to them, need "
            f"{readable(device.taken)}, but a device has {readable(device.size)}: choose a smaller "
            "network or representation."
        )
    for key, rows in batches.items():
        image = math.prod(rows.row_shape)
        host.check(key, config[key], image * rows.batches_ahead, jax.process_count(), rows)
        examples = config[key] // mesh.size
        at_once = examples // (config.accumulation if key == "batch_size" else 1)
        shape = (at_once * math.prod(rows.row_shape[:-3]), *rows.row_shape[-3:])
        images = jax.ShapeDtypeStruct(shape, config.dtype)
        forward = jax.make_jaxpr(partial(model.apply, train=False))(variables, images)
        one = image + largest_product(forward.jaxpr) // examples
        device.check(key, config[key], one, mesh.size, rows)


def check_compiled(key: str, size: int, step: Any, arguments: Sequence[Any], mesh: Mesh) -> None:
    """Compiles a step and refuses it if its memory is more than a device has.

    Args:
      key, size: of the config's batches, for the message.
      step: jitted; its calls with such arguments find it compiled.
      arguments: arrays, or shapes with shardings.
      mesh: all devices.
    Raises:
      UsageError: the step does not fit.
    """
    need = needed_bytes(step.lower(*arguments).compile())
    if need is None:
        return
    size_of_device = device_memory(mesh.local_devices, host_memory())
    cut = " or raise config.accumulation" if key == "batch_size" else ""
    if need > size_of_device:
        raise UsageError(
            f"config.{key} = {size} needs {readable(need)} in a step, but a device has "
            f"{readable(size_of_device)}: set a smaller one{cut}."
        )


def needed_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Of a device for a compiled program; None where the compiler does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    need = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return need - stats.alias_size_in_bytes  # outputs in the place of donated arguments


def largest_product(jaxpr: Any) -> int:
    """Bytes of the largest result of a convolution or a matrix product in a traced function."""
    largest = 0
    for equation in jaxpr.eqns:
        inner = [largest_product(each) for each in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":  # one of its branches is run, or compiled at all
            inner = [min(inner)]
        if equation.primitive.name in _PRODUCTS:
            inner.append(_bytes([each.aval for each in equation.outvars]))
        largest = max(largest, *inner, 0)
    return largest


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or those of its container."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        path = Path(name)
        text = path.read_text("utf-8").strip() if path.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def device_memory(devices: Sequence[jax.Device], host: int) -> int:
    """Bytes of the smallest of these devices, all of this process; CPU devices share the host's."""
    limits = [(each.memory_stats() or {}).get("bytes_limit") for each in devices]
    return min((each for each in limits if each), default=host // len(devices))


def readable(size: int) -> str:
    """1234567 → '1.23 MB'."""
    power = min((len(str(size)) - 1) // 3, len(_UNITS) - 1)
    return f"{size / 1000**power:.3g} {_UNITS[power]}"


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
