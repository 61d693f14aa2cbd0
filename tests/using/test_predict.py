"""`--mode=predict`: what is written and drawn, and what is refused."""

import csv
import json

import cv2
import numpy as np
import pytest

import main
from sop.errors import UsageError
from sop.using.mistakes import Confusion, Mistake, Worst
from tests import launch


@pytest.fixture
def predict(digits_run, tmp_path, capsys):
    """(what `--mode=predict` prints, the folder that it writes)."""

    def call(*arguments):
        out = tmp_path / "out"
        main.main(["--mode=predict", f"--workdir={digits_run}", f"--out={out}", *arguments])
        return capsys.readouterr().out, out

    return call


def read(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_every_image_of_a_folder_has_a_line(predict, photos, run):
    output, out = predict(f"--images={photos}", "--top=2")
    rows = read(out)
    names = sorted(photos.glob("*/*"), key=lambda path: path.relative_to(photos).parts)
    assert [row["image"] for row in rows] == list(map(str, names))
    [bad] = [row for row in rows if "error" in row]
    assert bad == {
        "image": f"{photos}/3/text.jpg",
        "label": "3",
        "error": "its bytes are not an image",
    }
    good = [row for row in rows if "error" not in row]
    said = run.predict([row["image"] for row in good])
    assert [row["classes"][0] for row in good] == said.names
    shares = said.top(2)[1]
    np.testing.assert_allclose([row["probabilities"] for row in good], shares, atol=1e-6)
    assert all(row["label"] == row["image"].split("/")[-2] for row in rows)
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(rows, table, strict=True):
        assert line["image"] == row["image"] and line["error"] == row.get("error", "")
        assert line["class_1"] == row.get("classes", [""])[0]
        assert line["p_2"] == str(row.get("probabilities", ["", ""])[1])
    right = sum(row["classes"][0] == row["label"] for row in good)
    assert f"Of 20 images with labels: top-1 {right / 20:.2%}" in output
    assert f"1 of 21 images cannot be decoded: {photos}/3/text.jpg" in output
    assert "… and 1 more" in output and f"label  says\n…{names[0]}"[:12] in output
    for name in ("confusion.png", "mistakes.png"):
        picture = cv2.imread(str(out / name))
        assert min(picture.shape[:2]) > 200 and picture.std() > 5
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png",
        "mistakes.png",
        "predictions.csv",
        "predictions.jsonl",
    ]


def test_a_split_is_evaluated_as_by_eval(predict, digits_run):
    output, out = predict("--images", "split:test")
    scores = json.loads((digits_run / "results.json").read_text())["best"]
    assert f"Of 360 images with labels: top-1 {scores['top1']:.2%}, top-5 {scores['top5']:.2%}" in (
        output
    )
    rows = read(out)
    right = np.mean([row["classes"][0] == row["label"] for row in rows])
    assert len(rows) == 360 and right == scores["top1"]
    assert rows[7]["image"] == "record 7 of digits/all/1.0.0, split 'test'"


def test_files_and_globs_without_labels_have_no_pictures(predict, photos, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in photos.glob("*/*.png"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    one = tmp_path / "flat" / "03.png"
    output, out = predict("--images", f"{tmp_path}/fl*/0[3-5].png", str(one))
    assert [row["image"] for row in read(out)] == [f"{tmp_path}/flat/0{i}.png" for i in (3, 4, 5)]
    assert "label" not in output and len(list(out.iterdir())) == 2
    output, out = predict("--images", f"{photos}/**/*.png")
    assert len(read(out)) == 20 and "Confusion matrix" in output
    below = tmp_path / "deep" / "train" / "4" / "more" / "a.png"
    below.parent.mkdir(parents=True)
    below.write_bytes(one.read_bytes())
    _, out = predict("--images", f"{tmp_path}/deep")
    assert read(out)[0]["label"] == "4"
    output, out = predict("--images", str(one))
    assert len(list(out.iterdir())) == 2  # the pictures of before are gone


def test_classes_of_another_data_set_are_matched_by_name(predict):
    output, _ = predict("--images=split:test", "--config.input.dataset=digits/5-9")
    assert "Of 180 images with labels: top-1" in output


REFUSALS = {
    "no run": (["--workdir=/no/such/run", "--images={photos}"], "/no/such/run holds no run"),
    "no images": ([], "Name the images"),
    "empty folder": (["--images={empty}"], "has no images"),
    "no such file": (["--images=/no/such.png"], "no file or folder /no/such.png"),
    "no match": (["--images={photos}/*.gif"], "No file matches"),
    "text": (["--images={photos}/3/text.jpg"], "text.jpg cannot be decoded, its bytes are not"),
    "no split": (["--images=split:valid"], "no split 'valid'"),
    "split and more": (["--images", "split:test", "a.png"], "give the split alone"),
    "no class": (["--images={photos}", "--top=0"], "--top"),
    "another model": (["--images={photos}", "--config.model.num_classes=3"], "num_classes was 10"),
    "a key": (["--images={photos}", "--config.batchsize=3"], "'batch_size'"),
    "no checkpoint": (["--images={photos}", "--checkpoint=5"], "no checkpoint '5'"),
    "other mode": (["--mode=eval", "--images={photos}"], "--images belongs to --mode=predict"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_leave_nothing(case, predict, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments, sentence = REFUSALS[case]
    places = {"photos": photos, "empty": tmp_path / "empty"}
    with pytest.raises(UsageError) as refusal:
        predict(*(each.format(**places) for each in arguments))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("out/*"))


def test_the_program_ends_with_status_2(digits_run, photos):
    arguments = (f"--workdir={digits_run}", f"--images={photos}/3/text.jpg")
    code, output = launch.run("main.py", "--mode=predict", *arguments)
    assert code == 2 and len(output.splitlines()) == 1 and "cannot be decoded" in output, output


def test_confusions_are_counted_and_many_classes_drawn(tmp_path):
    found = Confusion.empty([f"class ${i}" for i in range(60)])
    found.add(np.array([1, 1, 1, 2, 59]), np.array([1, 5, 5, 3, 59]))
    assert found.pairs() == [(1, 5, 2), (2, 3, 1)] and found.pairs(1) == [(1, 5, 2)]
    assert found.describe(1, 5, 2) == "class $1 taken for class $5: 2 of 3"
    assert cv2.imread(str(found.draw(tmp_path / "a.png", "$x"))).shape == (750, 1300, 3)
    nothing = Confusion.empty(["a", "b"])
    assert nothing.pairs() == [] and nothing.draw(tmp_path / "b.png", "").exists()


def test_the_worst_mistakes_are_kept():
    worst = Worst(size=2)
    for number, loss in enumerate((1.0, 5.0, 3.0, 3.0)):
        image = np.zeros((2, 2, 3), np.uint8)
        worst.add(Mistake(loss, number, "", "", "", image))
    assert sorted(each.loss for each in worst._kept) == [3.0, 5.0]
