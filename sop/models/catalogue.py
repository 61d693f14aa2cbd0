"""What networks cost."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from sop.models import create_model, get_backbone

# What the first members of families are called that are named by numbers.
_NUMBERS = {"depth": (20, 56, 110), "widening": (4, 10)}


class Cost(NamedTuple):
    """What a network takes, on one image.

    Attributes:
      image_size: height and width of the image.
      parameters: number of them.
      multiply_adds: of convolutions and matrix products of the forward pass, representation and
        attention included.
      output_stride: pixels from one position of the last feature map, or token, to the next.
      channels: of that map, or of the tokens.
    """

    image_size: int
    parameters: int
    multiply_adds: int
    output_stride: int
    channels: int


def cost(config: Mapping[str, Any], image_size: int | None = None) -> Cost:
    """What the network of a config.model takes; it is traced, not run.

    Args:
      image_size: height and width of the image; None: as published.
    Raises:
      UsageError: as `sop.models.create_model`.

    >>> cost({"backbone": "resnet50", "num_classes": 1000}).multiply_adds
    4089184256
    """
    model, size = create_model(config), image_size or get_backbone(config).image_size
    variables, images = shapes(model, size)
    features = model.features.clone(parent=None)
    inner = {name: values["features"] for name, values in variables.items() if "features" in values}
    output = jax.eval_shape(partial(features.apply, train=False), inner, images)
    return Cost(
        image_size=size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=of_forward_pass(model, variables, images),
        output_stride=stride(size, output),
        channels=output.shape[-1],
    )


def shapes(model: nn.Module, image_size: int) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Those of a network's variables, and of one image of `image_size`²."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images), images


def of_forward_pass(model: nn.Module, variables: Any, images: Any) -> int:
    """`multiply_adds` of a classifier or a detector, which is traced."""
    jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(variables, images)
    return multiply_adds(jaxpr.jaxpr)


def stride(size: int, x: Any) -> int:
    """Pixels of an image of `size`² from one position of a map [B,h,w,c] or token to the next."""
    return round(size / math.sqrt(math.prod(x.shape[1:-1])))


def multiply_adds(jaxpr: Any) -> int:
    """Multiplications of the convolutions and matrix products of a traced function.

    Those of a loop count as often as it runs, where that is known; of branches, the dearest counts.
    """
    return sum(_of_equation(each) for each in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        into = params["dimension_numbers"].rhs_spec[0]
        each = math.prod(kernel) // kernel[into]
        return math.prod(equation.outvars[0].aval.shape) * each
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    inner = [multiply_adds(each) for each in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, default=0)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def numbered(name: str) -> Iterator[str]:
    """A backbone's name with some numbers in the place of '{depth}'; itself where it has none."""
    holes = [each for each in _NUMBERS if f"{{{each}}}" in name]
    if not holes:
        yield name
        return
    first = holes[0]
    for number in _NUMBERS[first]:
        yield from numbered(name.replace(f"{{{first}}}", str(number)))
