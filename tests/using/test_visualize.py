"""`--mode=visualize`: pictures and arrays of each image, and what is refused."""

import cv2
import numpy as np
import pytest

import main
from sop.errors import UsageError
from sop.using.pictures import overlaid


@pytest.fixture
def visualize(digits_run, tmp_path, capsys):
    """(what `--mode=visualize` prints, the folder that it writes)."""

    def call(*arguments):
        out = tmp_path / "out"
        main.main(["--mode=visualize", f"--workdir={digits_run}", f"--out={out}", *arguments])
        return capsys.readouterr().out, out

    return call


def test_each_image_has_a_picture_and_its_arrays(visualize, photos, digits_run, run):
    output, out = visualize(f"--images={photos}/3", f"--against={digits_run}", "--class=8")
    assert sorted(path.name for path in out.iterdir()) == [
        "0000-03.npz",
        "0000-03.png",
        "0001-13.npz",
        "0001-13.png",
    ]
    assert f"{photos}/3/text.jpg cannot be decoded, its bytes are not an image" in output
    assert "2 pictures of layer features/layer3_0/conv1" in output
    picture = cv2.imread(str(out / "0000-03.png"))
    assert min(picture.shape[:2]) > 500 and picture.std() > 20
    found = np.load(out / "0000-03.npz")
    said = run.predict(photos / "3" / "03.png")
    np.testing.assert_allclose(found["logits"], said.logits[0], atol=1e-4)
    assert found["classes"].tolist() == [said.labels[0], 8]
    assert found["heat"].shape == found["grad_cam"].shape == (4, 4)
    assert found["spectrum/representation"].shape == (128,)
    for name in ("heat", "grad_cam", "image"):
        np.testing.assert_array_equal(found[name], found[f"against/{name}"])


def test_a_layer_may_be_named(visualize, photos):
    larger = "--config.input.test_transforms=resize_short(12) | center_crop(12)"
    output, out = visualize("--images", f"{photos}/5/05.png", larger, "--layer=layer2")
    assert "1 picture of layer features/layer2_0" in output
    assert np.load(out / "0000-05.npz")["grad_cam"].shape == (6, 6)


REFUSALS = {
    "no run": (["--workdir=/no/such/run"], "/no/such/run holds no run"),
    "no run against": (["--against=/no/such/run"], "/no/such/run holds no run"),
    "no layer": (["--layer=layer9"], "no layer 'layer9'"),
    "no map": (["--layer=classifier"], "Layer 'classifier' puts out [10] for an image, which has"),
    "class out of range": (["--class=10"], "no class '10' in "),
    "negative class": (["--class=-1"], "give a number from 0 to 9 or a name, such as '0'"),
    "text": (["--images={photos}/3/text.jpg"], "text.jpg cannot be decoded, its bytes are not"),
    "predict's": (["--top=3"], "--top belongs to --mode=predict"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_leave_nothing(case, visualize, photos, tmp_path):
    arguments, sentence = REFUSALS[case]
    with pytest.raises(UsageError) as refusal:
        visualize(f"--images={photos}/4", *(each.format(photos=photos) for each in arguments))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_map_is_smooth_over_the_image():
    image = np.full((8, 6, 3), 100, np.uint8)
    drawn = overlaid(image, np.array([[0.0, 2.0], [0.0, 0.0]]))
    assert drawn.shape == (200, 150, 3)
    hot, cold = drawn[10, -10].astype(int), drawn[-10, 10].astype(int)
    assert hot[0] > hot[2] + 20 and cold[2] > cold[0] - 20
    assert np.abs(np.diff(drawn.astype(int), axis=0)).max() < 30
    assert overlaid(image, np.zeros((2, 2))).std() < 30  # nothing is seen, nothing divided by zero
