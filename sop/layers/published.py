"""What a part was published with: its place in a network, and what it asks of the network."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Published:
    """What an attention or a representation asks of the network that it stands in.

    A layer carries it as the class attribute `published`; so may a module of your own that a config
    names by import path. What a config says goes before it.

    Attributes:
      after: of an attention: 'conv', after the convolution its paper names and before that one's
        norm, or 'branch', at the end of a residual branch, before the shortcut is added.
      blocks: of an attention: in 'all' blocks or in the 'last' one of each stage.
      symbols: of an attention: characters of a `blocks` string, besides 0 and 1, and the options
        they stand for.
      representation: of an attention: name of a representation → its options beside this attention.
      last_stride: stride of the network's last stage; None: the network's own.
      attention_in_last_stage: of a representation: whether attention in the 'last' block of each
        stage stands in the last stage too.
    """

    after: Literal["conv", "branch"] = "branch"
    blocks: str = "all"
    symbols: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    representation: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    last_stride: Literal[1, 2] | None = None
    attention_in_last_stage: bool = True
