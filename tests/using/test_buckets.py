"""A run in a bucket, used as one on a disk."""

import io

import numpy as np
import pytest

import main
import sop
from sop import plots
from sop.training.pretrained import load
from sop.training.storage import copy_files, entries, locate


@pytest.fixture(scope="module")
def workdir(digits_run, storage):
    """The run on the digits, copied there."""
    copy_files(digits_run, locate("gs://stand-in/digits"))
    return "gs://stand-in/digits"


def left(workdir, folder):
    return [path.name for path in entries(locate(workdir) / folder)]


def test_it_says_what_it_said(workdir, run, digits):
    copied = sop.load(workdir)
    np.testing.assert_array_equal(copied.predict(digits[0]).logits, run.predict(digits[0]).logits)
    assert copied.step == run.step and copied.class_names == run.class_names
    weights = load(workdir)["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(weights, run.variables["params"]["classifier"]["kernel"])


def test_what_the_modes_find_is_written_there(workdir, digits_run, photos, tmp_path, capsys):
    photo = min(photos.glob("*/*.png"))
    main.main([f"--workdir={workdir}", "--mode=eval"])
    main.main([f"--workdir={workdir}", "--mode=predict", "--images=split:test[:20]"])
    main.main([f"--workdir={workdir}", "--mode=visualize", f"--images={photo}"])
    assert len(left(workdir, "evaluations")) == 1
    written = left(workdir, "predictions")
    assert {"predictions.csv", "predictions.jsonl", "confusion.png"} <= {*written}
    assert not [name for name in written if name.endswith(".tmp")]
    lines = (locate(workdir) / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 20
    arrays, picture = entries(locate(workdir) / "pictures")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "image" in np.load(io.BytesIO(arrays.read_bytes()))
    plots.main([workdir, str(digits_run), f"--out={tmp_path}/curves.png"])
    assert "2 runs as 1 lines" in capsys.readouterr().out
