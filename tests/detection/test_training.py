"""A detector is trained, stopped, taken up again and evaluated as every network."""

import json
import shutil
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import main
import sop
from configs import detection, digit_scenes
from input_pipeline import SceneEvaluation
from sop.config import check
from sop.data.objects import make_objects
from sop.data.scenes import parse_scenes
from sop.detection import __main__ as find
from sop.detection import create_detector, learned_mask_size
from sop.errors import UsageError
from sop.models import create_model
from sop.results import __main__ as compare
from sop.sweep import __main__ as sweep
from sop.training import pretrained
from sop.training.detection import Detection
from sop.training.history import read_history
from sop.training.optimizer import make_optimizer, make_schedule
from sop.training.state import init_state, init_variables
from sop.training.step import data_parallel, make_mesh
from sop.training.variables import load_variables
from tests.detection.small import ARGUMENTS


@pytest.fixture(scope="module")
def whole(scenes_run):
    return scenes_run


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    del found["timing"]
    return found


def test_a_run_leaves_scores(whole):
    history = read_history(whole)
    losses = [entry for entry in history if entry["split"] == "train"]
    assert losses[-1]["loss"] < losses[0]["loss"]
    parts = losses[-1]["classification"] + losses[-1]["box"]
    assert losses[-1]["loss"] == pytest.approx(parts, rel=1e-4)
    found = results(whole)
    assert 0 <= found["AP"] <= found["AP50"] <= 1 and found["count"] == 24
    assert set(found["per_class"]) == set("0123456789")
    assert found["best"]["AP"] == max(e["AP"] for e in history if e["split"] == "eval")
    assert (whole / "curves.png").stat().st_size > 5000


def test_a_killed_run_goes_on_as_if_it_never_stopped(whole, tmp_path):
    """All of the last epoch is lost, and what was reported of it is there already."""
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    shutil.rmtree(folder / "checkpoints" / str(steps[-1]))
    main.main([*ARGUMENTS, f"--workdir={folder}"])
    assert (folder / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    assert results(folder) == results(whole)
    variables = (load_variables(each / "checkpoints" / str(steps[-1])) for each in (folder, whole))
    jax.tree.map(np.testing.assert_array_equal, *variables)


def test_evaluating_gives_the_same_scores(whole, capsys):
    main.main(["--mode=eval", f"--workdir={whole}", "--checkpoint=latest"])
    [file] = (whole / "evaluations").glob("*.json")
    found, trained = json.loads(file.read_text()), results(whole)
    for name in ("AP", "AP50", "VOC_AP", "per_class"):
        assert found[name] == trained[name]
    assert "AP50" in capsys.readouterr().out


def test_what_is_found_is_written_and_drawn(whole, tmp_path, capsys):
    find.main([f"--workdir={whole}", f"--out={tmp_path / 'split'}", "--count=2"])
    rows = json.loads((tmp_path / "split" / "detections.json").read_text())
    assert {row["image_id"] for row in rows} <= {0, 1} and all(len(r["bbox"]) == 4 for r in rows)
    assert (tmp_path / "split" / "page1.png").stat().st_size > 5000

    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((30, 90, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    arguments = [f"--workdir={whole}", f"--out={tmp_path / 'own'}"]
    find.main([*arguments, f"--images={tmp_path}/*.png"])
    said = capsys.readouterr().out
    assert "text.png is left out" in said and "in 1 images" in said
    for row in json.loads((tmp_path / "own" / "detections.json").read_text()):
        left, top, width, height = row["bbox"]
        assert row["file_name"] == "wide.png"
        assert left >= 0 and top >= 0 and left + width <= 90 and top + height <= 30
    with pytest.raises(UsageError, match="No file matches"):
        find.main([*arguments, f"--images={tmp_path}/*.gif"])


def test_a_classifier_is_no_detector(digits_run):
    with pytest.raises(UsageError, match="is no detector"):
        find.main([f"--workdir={digits_run}"])


def test_predict_is_for_detectors_too(whole, tmp_path, capsys):
    arguments = ["--mode=predict", f"--workdir={whole}", f"--out={tmp_path}"]
    main.main([*arguments, "--images=split:test[:3]"])
    assert "in 3 images" in capsys.readouterr().out and (tmp_path / "page1.png").exists()
    with pytest.raises(UsageError, match="--top belongs to classifiers"):
        main.main([*arguments, "--images=split:test[:3]", "--top=3"])


def test_a_detector_starts_from_a_classifier():
    """With its features; the heads are new, and so they are for other classes."""
    said: list[str] = []
    ssd = {"name": "ssd", "extras": (), "ratios": ((2.0,),) * 2}

    def variables(make, seed, **changes):
        config = {"backbone": "resnet8_cifar", "num_classes": 4, **changes}
        shapes = jax.eval_shape(partial(init_variables, make(config), 0, (32, 32, 3)))
        draw = np.random.default_rng(seed).standard_normal
        return jax.tree.map(lambda x: draw(x.shape, x.dtype), shapes)

    classifier = variables(create_model, 1)
    wanted = variables(create_detector, 2, detector=ssd)
    merged = pretrained.merge(wanted, classifier, "runs/x", said.append)
    for collection in ("params", "batch_stats"):
        there, here = merged[collection]["features"], classifier[collection]["features"]
        jax.tree.map(np.testing.assert_array_equal, there, here)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, wanted)
    assert "Weights from runs/x: classes0 is not there and starts anew." in said

    said.clear()
    other = variables(create_detector, 3, detector=ssd, num_classes=7)
    merged = pretrained.merge(wanted, other, "runs/x", said.append)
    np.testing.assert_array_equal(
        merged["params"]["boxes0"]["kernel"], other["params"]["boxes0"]["kernel"]
    )
    assert all("classes" in each and "of another shape" in each for each in said) and said


def test_a_split_without_objects_is_refused(whole, monkeypatch):
    monkeypatch.setattr(
        SceneEvaluation, "truth", lambda data, index: ((64, 64), make_objects([], []))
    )
    with pytest.raises(UsageError, match="'test\\[:24\\]' has no object that counts"):
        main.main(["--mode=eval", f"--workdir={whole}"])


def test_a_run_of_a_sweep_is_known_and_put_into_a_table(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "seed=0")
    sweep.main([*ARGUMENTS, f"--workdir={tmp_path}"])
    assert "1 run(s) in" in (said := capsys.readouterr().out) and "1 finished" in said
    compare.main([str(tmp_path), "--time"])
    [line] = json.loads((tmp_path / "results" / "table.json").read_text())
    found = results(whole)
    assert (line["AP"], line["AP50"]) == (found["AP"], found["AP50"])
    assert line["mask_AP"] is None and line["parameters"] == found["parameters"]
    assert line["multiply_adds"] > 1e6 and line["images_per_second"] > 0
    said = capsys.readouterr().out
    assert "AP50 (%)" in said and "mask" not in said and "top-1" not in said
    with pytest.raises(UsageError, match="--robustness examines classifiers"):
        compare.main([str(tmp_path), "--robustness"])


def test_a_tuning_of_detectors_is_planned(tmp_path, capsys):
    """On two parts of the training split; what cannot be meant is refused before."""
    command = ["--config=configs/digit_scenes.py", "--tune=optimizer.learning_rate=0.01,0.02"]
    command += [f"--workdir={tmp_path / 'runs'}", "--print"]
    sweep.main(command)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all("train_split=train[:80%]" in each for each in printed)
    for wrong, message in [
        ("--grid=input.train_transforms=flip,pad_crop(64, 4)", "pad_crop"),
        ("--grid=model.detector.name=ssd,sdd", "no detector 'sdd'"),
        ("--grid=model.detector.overlap=0.4,half", "overlap"),
        ("--validation=train,test[:50%]", "choose on 'test'"),
        ("--validation=train[:99%],valid", "no split 'valid'"),
    ]:
        with pytest.raises(UsageError, match=message):
            sweep.main([*command, wrong])
    assert not (tmp_path / "runs").exists()


def test_a_loaded_detector_finds_what_predict_finds(whole, tmp_path):
    run = sop.load(whole, checkpoint="latest", changes={"input.exif": "ignore"})
    assert repr(run).startswith("<Detector ") and run.class_names == tuple("0123456789")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (30, 90, 3))]
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[..., ::-1])
    paths = sorted(tmp_path.glob("*.png"))
    found = run.detect(images)
    for each, again in zip(found, run.detect(paths), strict=True):
        np.testing.assert_array_equal(each.boxes, again.boxes)
    assert (found[1].boxes <= [90, 30, 90, 30]).all() and found[1].masks is None
    find.main([f"--workdir={whole}", "--checkpoint=latest", "--images", *map(str, paths)])
    rows = json.loads((whole / "detections" / "detections.json").read_text())
    assert len(rows) == sum(len(each.scores) for each in found) > 0
    scores = np.concatenate([each.scores for each in found])
    np.testing.assert_array_equal([row["score"] for row in rows], scores)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(
        UsageError, match=r"text\.png cannot be decoded, its bytes are not an image"
    ):
        run.detect(tmp_path / "text.png")


def test_a_detector_sees_what_its_transforms_for_tests_make(whole):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    changes = {"input.test_transforms": "resize_pad(128, 128, 64)"}
    plain, larger = (sop.load(whole, changes=each).detect(image) for each in ({}, changes))
    assert not np.array_equal(plain[0].boxes, larger[0].boxes)


def test_what_is_for_classification_says_so(whole, digits_run, tmp_path):
    arguments = ["--mode=visualize", f"--out={tmp_path}", "--images=split:test[:1]"]
    for workdir, *more in ((whole,), (digits_run, f"--against={whole}")):
        with pytest.raises(UsageError, match=r"is a detector.*--mode=predict draws the objects"):
            main.main([*arguments, f"--workdir={workdir}", *more])
    assert not list(tmp_path.iterdir())


# Tracing ResNet-50 takes seconds; two of these are enough for every day.
HEAVY = ("faster_rcnn_resnet50", "resnet50_gsop", "resnet50_gfgp", "mask_rcnn_resnet50")
CONFIGS = [
    pytest.param(file, name, marks=[pytest.mark.heavy] if name.endswith(HEAVY) else [])
    for file in (digit_scenes, detection)
    for name in file.EXPERIMENTS
]


@pytest.mark.parametrize(("file", "name"), CONFIGS)
def test_steps_at_full_size(file, name):
    """Shapes alone: the state keeps its own, detections have theirs."""
    config = file.get_config(name)
    check(config)
    detector = create_detector(config.model)
    size, *others = parse_scenes(config.input.train_transforms, training=True).sizes()
    sizes = parse_scenes(config.input.eval_transforms, training=False).sizes()
    assert sizes == [size, *others]
    variables = jax.eval_shape(partial(init_variables, detector, 0, (*size, 3)))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, config.num_epochs, 10)
    tx = make_optimizer(config.optimizer, schedule, variables["params"])
    state = jax.eval_shape(lambda: init_state(variables_like(variables), tx))
    count, objects = 2, config.input.max_objects
    rows = {
        "image": ((*size, 3), np.uint8),
        "size": ((2,), np.float32),
        "boxes": ((objects, 4), np.float32),
        "labels": ((objects,), np.int32),
        "valid": ((objects,), bool),
        "crowd": ((objects,), bool),
    }
    losses = {"classification", "box"}
    if "rcnn" in config.model.detector.name:
        losses |= {"rpn_classification", "rpn_box"}
    if mask_size := learned_mask_size(config.model):
        rows["masks"] = ((objects, mask_size, mask_size), np.uint8)
        losses |= {"mask"}
    batch = {k: jax.ShapeDtypeStruct((count, *shape), d) for k, (shape, d) in rows.items()}
    task = Detection(config, detector)
    step = data_parallel(task.train_step(tx), make_mesh(jax.devices()[:1]))
    new, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert set(metrics) == {"loss", "grad_norm", *losses}
    images = jax.ShapeDtypeStruct((count, *size, 3), np.float32)
    found = jax.eval_shape(detector.apply, variables, images)
    assert found["boxes"].shape == (count, detector.detections, 4)


def variables_like(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.input.train_transforms=expand|resize_pad(96, 64)", "at random"),
        ("--config.input.train_transforms=flip", "end in resize"),
        ("--config.input.train_transforms=random_resized_crop(64)", "random_resized_crop"),
        ("--config.input.cache=True", "cache"),
        ("--config.input.dataset=digits", "boxes"),
        ("--config.model.num_classes=3", "num_classes"),
        ("--config.model.detector.overlap=two", "overlap"),
    ],
)
def test_refusals_are_one_sentence_and_touch_nothing(option, message, tmp_path):
    import launch
    from sop.config.command_line import load

    config = load("configs/digit_scenes.py")
    key, _, value = option.removeprefix("--config.").partition("=")
    *groups, last = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    value = {"True": True, "3": 3}.get(value, value)
    with group.unlocked(), config.unlocked():
        group[last] = value
    with pytest.raises(UsageError, match=message):
        launch.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
