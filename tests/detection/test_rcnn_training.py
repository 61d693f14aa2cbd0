"""Mask R-CNN on images of two shapes is trained, stopped, taken up again and evaluated."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

import input_pipeline
import main
import sop
from sop import export
from sop.config.command_line import parse
from sop.data.masks import decode_mask, encode_mask
from sop.detection import __main__ as find
from sop.errors import UsageError
from sop.training.history import read_history
from sop.training.variables import load_variables
from tests.launch import run_together

NAMES = ["bright", "dark"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In COCO's format: eighteen wide images and nine high ones, a rectangle or an ellipse each."""
    root = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 0), ("val", 1)):
        rng = np.random.default_rng(seed)
        images, annotations = [], []
        (root / split).mkdir()
        (root / "annotations").mkdir(exist_ok=True)
        for number in range(27):
            height, width = (40, 60) if number % 3 < 2 else (60, 40)
            image, mask = np.full((height, width, 3), 128, np.uint8), np.zeros((height, width))
            kind = int(rng.integers(2))
            left, top = rng.integers(2, 12, 2).tolist()
            right, bottom = left + int(rng.integers(14, 26)), top + int(rng.integers(14, 26))
            cv2.rectangle(mask, (left, top), (right - 1, bottom - 1), 1, -1)
            mask[top : (top + bottom) // 2, left : (left + right) // 2] = 0
            image[mask > 0] = (230, 20)[kind]
            name = f"{number}.png"
            cv2.imwrite(str(root / split / name), image)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            rle = encode_mask(mask.astype(np.uint8))
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number,
                    "category_id": kind,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        categories = [{"id": kind, "name": name} for kind, name in enumerate(NAMES)]
        file = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(file))
    return root


@pytest.fixture(scope="module")
def arguments(folder):
    return (
        "--config=configs/digit_scenes.py:mask",
        f"--config.input.dataset=coco:{folder}",
        "--config.input.train_split=train",
        "--config.input.eval_split=val",
        "--config.input.train_transforms=flip | resize_pad(48, 32, 16)",
        "--config.input.eval_transforms=resize_pad(48, 32, 16)",
        "--config.input.max_objects=2",
        "--config.model.num_classes=2",
        "--config.model.detector.width=8",
        "--config.model.detector.mask_width=8",
        "--config.model.detector.hidden=16",
        "--config.model.detector.proposals=16",
        "--config.model.detector.detections=4",
        "--config.batch_size=8",
        "--config.eval_batch_size=8",
        "--config.num_epochs=3",
        "--config.eval_every_epochs=1",
        "--config.log_every_steps=1",
    )


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "mask"
    main.main([*arguments, f"--workdir={workdir}"])
    return workdir


def test_batches_have_images_of_one_size(arguments):
    """Every example once; which ones come together, and when, is drawn anew in each epoch."""
    _, config = parse(main.make_parser(), [*arguments, "--workdir=nowhere"])
    data = input_pipeline.create_train(config)
    assert data.steps_per_epoch == 18 // 8 + 9 // 8
    batches = data.batches()
    epochs = [[next(batches) for _ in range(3)] for _ in range(4)]
    orders = []
    for epoch in epochs:
        shapes = [batch["image"].shape for batch in epoch]
        assert sorted(shapes) == [(8, 32, 48, 3)] * 2 + [(8, 48, 32, 3)]
        orders.append(shapes)
        sums = [row.sum() for batch in epoch for row in batch["image"].astype(int)]
        assert len(set(sums)) == 24
    assert len(set(map(str, orders))) > 1
    again = next(data.batches(start=4))
    jax.tree.map(np.testing.assert_array_equal, again, epochs[1][1])
    mask = again["masks"][0, 0]  # one quarter of it is missing
    assert mask.shape == (56, 56) and (mask[32:] == 255).mean() > 0.9
    assert (mask[:24] == 0).mean() == pytest.approx(0.5, abs=0.1)

    found = list(input_pipeline.create_eval(config))
    assert len(found) == 3 + 2
    indices = np.concatenate([batch["index"][batch["mask"]] for batch in found])
    assert sorted(indices.tolist()) == list(range(27))
    # Two processes have halves of the same batches.
    halves = [list(input_pipeline.create_eval(config, rank, 2)) for rank in range(2)]
    for whole_batch, *parts in zip(found, *halves, strict=True):
        together = np.concatenate([part["index"] for part in parts])
        np.testing.assert_array_equal(together, whole_batch["index"])


def test_a_batch_that_no_size_fills_is_refused(arguments):
    _, config = parse(main.make_parser(), [*arguments, "--workdir=nowhere"])
    config.batch_size = 24
    with pytest.raises(UsageError, match="batch_size = 24 exceeds the number of images of each"):
        input_pipeline.create_train(config)


def test_masks_are_needed(arguments, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "boxes")
    file = tmp_path / "boxes" / "annotations" / "instances_train.json"
    whole = json.loads(file.read_text())
    del whole["annotations"][3]["segmentation"]
    file.write_text(json.dumps(whole))
    _, config = parse(main.make_parser(), [*arguments, "--workdir=nowhere"])
    config.input.dataset = f"coco:{tmp_path / 'boxes'}"
    with pytest.raises(
        UsageError, match=r"Annotation 4 in .* has no segmentation.*Choose 'faster_rcnn'"
    ):
        input_pipeline.create_train(config)


def test_an_image_that_is_not_of_its_annotations_size_is_refused(arguments, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    cv2.imwrite(str(tmp_path / "other" / "train" / "3.png"), np.zeros((41, 60, 3), np.uint8))
    _, config = parse(main.make_parser(), [*arguments, "--workdir=nowhere"])
    config.input.dataset = f"coco:{tmp_path / 'other'}"
    data = input_pipeline.create_train(config).batches()
    with pytest.raises(UsageError, match=r"3\.png.*41 rows and 60 columns.*for 40 and 60"):
        [next(data) for _ in range(6)]


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    del found["timing"]
    return found


def test_a_killed_run_goes_on_as_if_it_never_stopped(whole, arguments, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in steps[1:]:
        shutil.rmtree(folder / "checkpoints" / str(step))
    main.main([*arguments, f"--workdir={folder}"])
    assert (folder / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    assert results(folder) == results(whole)
    variables = (load_variables(each / "checkpoints" / str(steps[-1])) for each in (folder, whole))
    jax.tree.map(np.testing.assert_array_equal, *variables)


def test_scores_of_masks(whole, capsys):
    history = read_history(whole)
    losses = [entry for entry in history if entry["split"] == "train"]
    assert losses[-1]["loss"] < losses[0]["loss"] and losses[-1]["mask"] > 0
    found = results(whole)
    assert found["count"] == 27 and 0 <= found["mask_AP"] <= 1
    assert set(found["per_class"]["dark"]) == {"AP", "AP50", "VOC_AP", "mask_AP"}
    main.main(["--mode=eval", f"--workdir={whole}", "--checkpoint=latest"])
    [file] = (whole / "evaluations").glob("*.json")
    assert json.loads(file.read_text())["mask_AP"] == found["mask_AP"]
    assert "mask AP" in capsys.readouterr().out


def test_masks_are_written_and_drawn(whole, folder, tmp_path):
    find.main([f"--workdir={whole}", f"--out={tmp_path}", "--count=2", "--threshold=0.0"])
    rows = json.loads((tmp_path / "detections.json").read_text())
    for row in rows:
        mask = decode_mask(row["segmentation"])
        left, top, width, height = row["bbox"]
        inside = np.zeros_like(mask)
        inside[int(top) : int(np.ceil(top + height)), int(left) : int(np.ceil(left + width))] = 1
        assert sorted(mask.shape) == [40, 60] and (mask <= inside).all()
    assert rows and (tmp_path / "page1.png").stat().st_size > 5000
    loaded = sop.load(whole)
    [path, *_] = sorted(folder.glob("val/*.png"))
    [found] = loaded.detect(path)
    mine = [row["segmentation"]["counts"] for row in rows if row["image_id"] == 0]
    assert [mask["counts"].decode() for mask in found.masks] == mine
    with pytest.raises(UsageError, match=r"resize_pad\(48, 32, 16\)', leave open how large"):
        export.image_shape(loaded, None)


@pytest.mark.heavy
def test_two_processes_count_every_image_once(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in (folder / "evaluations").glob("*.json"):
        path.unlink()
    arguments = ("main.py", "--mode=eval", f"--workdir={folder}", "--checkpoint=latest")
    ends = run_together(*arguments, processes=2, devices=4)
    assert [code for code, _ in ends] == [0, 0], ends
    [file] = (folder / "evaluations").glob("*.json")
    found, alone = json.loads(file.read_text()), results(whole)
    assert found["count"] == 27
    for name in ("AP", "AP50", "mask_AP", "VOC_AP"):
        assert found[name] == pytest.approx(alone[name], abs=1e-6)
