"""Calibration, and accuracy on images that are made worse."""

import json

import numpy as np
import pytest

from sop.results.record import record
from sop.results.robustness import Robustness, blur, calibration_error, examine, fade, noise


def test_calibration_error_is_the_mean_gap_of_accuracy_and_confidence():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    # Of two at 0.9 one is right: a gap of 0.4; the one at 0.7 is right: 0.3; that at 0.5: 0.5.
    labels = np.array([0, 1, 1, 0])
    assert calibration_error(probabilities, labels) == pytest.approx((0.8 + 0.3 + 0.5) / 4)
    sure = np.eye(3)
    assert calibration_error(sure, np.arange(3)) == 0
    assert calibration_error(sure, np.arange(3)[::-1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("change", [noise, blur, fade])
def test_images_become_worse_but_stay_images(change):
    images = np.zeros((2, 1, 8, 8, 3), np.uint8)
    images[:, :, ::2] = 255
    random = np.random.default_rng(0)
    worse = change(images, random)
    assert worse.shape == images.shape and worse.dtype == np.uint8
    assert worse.mean() == pytest.approx(images.mean(), abs=8)
    assert (worse != images).mean() > 0.4
    flat = np.full_like(images, 7)
    assert change is noise or (change(flat, random) == flat).all()


def test_a_run_is_examined_on_its_evaluation_split(digits_run):
    found = examine(digits_run)
    top1 = json.loads((digits_run / "results.json").read_text())["top1"]
    assert all(0 <= value <= 1 for value in found)
    assert found.contrast < top1 and found.blur < top1
    row = record(digits_run, "digits", robustness=True)
    assert [row[name] for name in Robustness._fields] == list(found) and row["top1"] == top1
