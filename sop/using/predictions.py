"""What a network says of images."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One row for each image.

    Attributes:
      logits: float32 [N, K]; NaN where an image cannot be decoded.
      class_names: of the K classes.
    """

    logits: np.ndarray
    class_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def probabilities(self) -> np.ndarray:
        """softmax(logits), float32 [N, K]."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    @property
    def labels(self) -> np.ndarray:
        """The numbers of the likeliest classes, int [N]."""
        return self.logits.argmax(axis=1)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [self.class_names[label] for label in self.labels]

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and probabilities of the k likeliest classes, in falling order: [N, k] each."""
        best = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]
        return best, np.take_along_axis(self.probabilities, best, axis=1)
