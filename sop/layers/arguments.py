"""Refusals, when a layer is traced, of shapes and options that make no sense."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp


def require_feature_map(layer: nn.Module, x: jax.Array) -> None:
    """x must be [B, H, W, C] of floats, with H, W and C at least 1."""
    kind = type(layer).__name__
    if x.ndim != 4:
        raise ValueError(f"{kind} got x of shape {x.shape}: give a feature map [B, H, W, C].")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{kind} got x of dtype {x.dtype}: cast it to a floating type.")
    if 0 in x.shape:
        raise ValueError(f"{kind} got x of shape {x.shape}: every axis must be at least 1.")


def require_count(layer: nn.Module, name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        kind = type(layer).__name__
        raise ValueError(f"{kind} got {name} {value!r}: give a whole number of at least 1.")


def require_choice(layer: nn.Module, name: str, value) -> None:
    """The value must be one of those in the field's `Literal` annotation."""
    choices = typing.get_args(typing.get_type_hints(type(layer))[name])
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{type(layer).__name__} got {name} {value!r}: give one of {known}.")
