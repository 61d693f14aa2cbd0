r"""What a layer was published with: its place in a network, its needs there, its original's names.

A layer may have two class attributes; so may a module of your own that a config names by import
path. One that has none has the defaults of `Published` and the names of its own submodules.

- `published: ClassVar[Published]`, below.
- `torch_names: ClassVar[tuple[tuple[str, str], ...]]`: rules (regular expression, replacement) that
  turn paths of the layer's variables into the names of the original.

A rule of `torch_names` is applied by `re.sub`, in order, to the path of a variable in its network,
'…/{place}/{submodules}/{leaf}', as in 'features/layer1_0/attention/channel/reduce/kernel'. The
place is 'attention', 'representation', or 'pool' with or without a number. The pattern names place
and submodules, r"\battention/channel/reduce\b"; the replacement stands for both. What comes before
is the network's to rename, and leaves (kernel → weight) are the same for all.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Published:
    """What an attention or a representation asks of the network that it stands in.

    A config's own options go before it.

    Attributes:
      after: of an attention: 'conv', after the convolution that its paper names and before that
        one's norm, or 'branch', at the end of a residual branch, before the shortcut is added.
      blocks: of an attention: in 'all' blocks, or in the 'last' one of each stage.
      symbols: of an attention: characters of a string of blocks, besides 0 and 1, → the options
        that they stand for.
      last_stride: stride of the network's last stage; None: the network's own.
      attention_in_last_stage: of a representation: whether attention in the 'last' block of each
        stage stands in the last stage too.
      reduces: of a representation: whether it has a field `reduction`, the width that channels are
        reduced to, for which a network has a default.
      representation: of an attention: name of a representation → options that it was published
        with beside this attention.
    """

    after: Literal["conv", "branch"] = "branch"
    blocks: str = "all"
    symbols: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    last_stride: int | None = None
    attention_in_last_stage: bool = True
    reduces: bool = False
    representation: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
