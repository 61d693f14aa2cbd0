"""PyTorch state dicts ↔ Flax variables.

Each parameter's path in the Flax network is turned into the name that the original gives it, by
the rules that stand with each layer (`torch_names`) and each network (`TORCH_NAMES`). Both
directions use the same names: `convert` looks them up in a file, whose own spellings are first
brought to these names by the network's aliases; `to_state_dict` writes them.
"""

from sop.torch_weights.engine import convert, convert_layer, to_state_dict
from sop.torch_weights.files import read
from sop.torch_weights.names import has_names

__all__ = ["convert", "convert_layer", "has_names", "read", "to_state_dict"]
