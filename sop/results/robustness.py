"""How far a network's probabilities can be trusted, and what it makes of worse images."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sop.data.sources import open_source
from sop.errors import UsageError
from sop.using.predictions import Predictions
from sop.using.run import Run, load

_BINS = 15
_DEVIATION = 0.08 * 255
_SIGMA = 1.0  # pixels
_SHARE = 0.4


class Robustness(NamedTuple):
    """Of a trained network on its evaluation split.

    Attributes:
      ece: expected calibration error, in [0, 1].
      noise, blur, contrast: top-1 in [0, 1] on images that are made worse so.
    """

    ece: float
    noise: float
    blur: float
    contrast: float


def examine(workdir: Path) -> Robustness:
    """Of the last checkpoint of a work folder, on the run's own evaluation split and transforms.

    The transformed images are made worse: by normal noise with a deviation of 0.08 of the range, a
    Gaussian blur of σ = 1 pixel, and 0.4 of the contrast about an image's mean. The first and the
    last are the mildest of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
    Common Corruptions and Perturbations", ICLR 2019. Undecodable images are left out.

    Raises:
      UsageError: as `sop.load`, or the run is a detector.
    """
    run = load(workdir, "latest", {"input.test_transforms": None})
    if not isinstance(run, Run):
        raise UsageError(
            f"--robustness examines classifiers, and the run in {workdir} is a detector: leave it "
            "out."
        )
    inputs = run.config.input
    pictures = open_source(inputs.dataset, inputs.eval_split, inputs.data_dir)
    kinds: dict[str, Callable] = {"noise": noise, "blur": blur, "contrast": fade}
    logits: dict[str, list[np.ndarray]] = {"as they are": [], **{kind: [] for kind in kinds}}
    labels = []
    for batch in run.batches(pictures):
        good = [row for row in range(len(batch.images)) if row not in batch.bad]
        labels.append(batch.labels[good])
        random = np.random.default_rng(batch.first)
        worse = {kind: change(batch.images, random) for kind, change in kinds.items()}
        for kind, images in {"as they are": batch.images, **worse}.items():
            logits[kind].append(run.logits(images)[good])
    truth = np.concatenate(labels)
    said = {
        kind: Predictions(np.concatenate(each), run.class_names) for kind, each in logits.items()
    }
    error = calibration_error(said["as they are"].probabilities, truth)
    return Robustness(error, *(float((said[kind].labels == truth).mean()) for kind in kinds))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Σ_b n_b/N · |accuracy_b − confidence_b| over 15 bins of equal width of the confidence.

    The confidence is the probability of the likeliest class. Naeini et al., "Obtaining Well
    Calibrated Probabilities Using Bayesian Binning", AAAI 2015; Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017.

    Args:
      probabilities: [N, K].
      labels: int [N].
    """
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    places = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return float(np.abs(np.bincount(places, gap, _BINS)).sum() / len(labels))


def noise(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """uint8 images plus normal noise."""
    return _pixels(images + random.normal(0, _DEVIATION, images.shape))


def blur(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """uint8 [..., H, W, 3], blurred."""
    flat = images.reshape(-1, *images.shape[-3:])
    return np.stack([cv2.GaussianBlur(each, (0, 0), _SIGMA) for each in flat]).reshape(images.shape)


def fade(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """uint8 [..., H, W, 3], nearer to the mean of each image."""
    mean = images.mean((-3, -2, -1), keepdims=True)
    return _pixels(mean + _SHARE * (images - mean))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
