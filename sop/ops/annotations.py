"""What the shapes in annotations are made of; `jaxtyping` gives them their meaning.

The letters b, h, w, n, c stand for batch, height, width, number of positions and channels. A letter
that stands twice in a signature stands for one number. Annotations are not checked at run time; the
tests check them.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray
FeatureMap = Float[Array, "b h w c"]
Tokens = Float[Array, "b n c"]
Matrices = Float[Array, "*batch c c"]
