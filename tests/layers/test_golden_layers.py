"""The layers give the originals' numbers, forward and backward."""

import pytest

from tests.golden import layer_cases
from tests.golden.layer_cases import FOLDER, GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, cases

# The original's own rounding error is above the tolerances there, see below.
NOISY = "compact_bilinear"


def assert_close(found):
    for key, error in found.items():
        assert error < (OUTPUT_TOLERANCE if key == "y" else GRADIENT_TOLERANCE), key


@pytest.mark.parametrize("name", [name for name in cases() if name != NOISY])
def test_original(name):
    assert_close(layer_cases.errors(name))


def test_compact_bilinear_is_within_the_originals_own_error():
    golden = layer_cases.load(NOISY)
    exact = layer_cases.compact_bilinear_float64(golden)
    ours = layer_cases.computed(cases()[NOISY], golden)
    assert_close(layer_cases.differences(ours, exact))
    to_original = layer_cases.differences(ours, golden)
    original_to_exact = layer_cases.differences({key: golden[key] for key in exact}, exact)
    for key, tolerance in (("y", OUTPUT_TOLERANCE), ("grad/x", GRADIENT_TOLERANCE)):
        assert to_original[key] < tolerance + original_to_exact[key]
    reached = exact["y"] != 0
    assert abs(ours["y"] - golden["y"])[reached].max() < OUTPUT_TOLERANCE * golden["y"].max()


def test_every_golden_file_has_a_case():
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(cases())
