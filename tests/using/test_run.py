"""A run loaded from its folder: what it says is what `--mode=eval` counts."""

import json

import jax
import numpy as np
import optax
import pytest

import input_pipeline
import main
import sop
from sop.errors import UsageError
from sop.training import memory
from sop.training.step import data_parallel, make_eval_step, to_devices


def test_the_logits_are_those_of_the_evaluation(run, digits_run, capsys):
    evaluation = input_pipeline.create_eval(run.config)
    step = data_parallel(make_eval_step(run.model, normalize=run.normalize), run.mesh)
    losses = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    logits, labels = [], []
    for batch in evaluation:
        labels.append(batch["label"])
        logits.append(run.predict(batch["image"]).logits)
        for one in range(0, 120, 40):  # all rows but one masked: the loss of this one
            alone = {**batch, "mask": np.arange(120) == one}
            sums = step(run.variables, to_devices(run.mesh, alone))
            assert float(sums["loss"]) == float(losses(logits[-1], batch["label"])[one])
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    main.main(["--mode=eval", f"--workdir={digits_run}"])
    scores = json.loads(next((digits_run / "evaluations").iterdir()).read_text())
    assert scores["top1"] == (logits.argmax(1) == labels).mean() > 0.6
    np.testing.assert_allclose(scores["loss"], losses(logits, labels).mean(), rtol=1e-6)
    assert f"top-1 {scores['top1']:.2%}" in capsys.readouterr().out


def test_arrays_and_files_in_any_number_say_the_same(run, digits, photos):
    images, labels = digits
    whole = run.predict(images)
    assert whole.logits.shape == (20, 10) and len(whole) == 20
    assert np.mean(whole.labels == labels) > 0.6
    assert whole.names == [run.class_names[label] for label in whole.labels]
    paths = [photos / str(label) / f"{number:02}.png" for number, label in enumerate(labels)]
    for few in (paths, list(map(str, paths)), list(images)):
        np.testing.assert_array_equal(run.predict(few).logits, whole.logits)
    for one in (images[3], paths[3], str(paths[3]), images[3:4]):  # in a batch of another size
        expected = whole.logits[3:4]
        atol = 1e-5 * abs(expected).max()
        np.testing.assert_allclose(run.predict(one).logits, expected, atol=atol)


def test_the_likeliest_classes_come_first(run, digits):
    said = run.predict(digits[0])
    best, shares = said.top(3)
    assert best.shape == shares.shape == (20, 3)
    np.testing.assert_array_equal(best[:, 0], said.labels)
    assert (np.diff(shares, axis=1) <= 0).all()
    np.testing.assert_allclose(said.probabilities.sum(1), 1, rtol=1e-6)
    assert said.top(50)[0].shape == (20, 10)


def test_features_are_what_layers_put_out(run, digits):
    images, _ = digits
    logits = run.predict(images).logits
    np.testing.assert_allclose(run.features(images, at="classifier"), logits, rtol=1e-6, atol=1e-6)
    assert run.features(images).shape == (20, 128 * 129 // 2)
    stage = run.features(images, at="layer3")
    np.testing.assert_array_equal(stage, run.features(images, at="features/layer3_0"))
    assert stage.shape == (20, 4, 4, 64) and (stage >= 0).all()
    assert run.features(images[0], at="layer2_0/conv1").shape == (1, 4, 4, 32)


def test_views_share_a_prediction_and_have_features_of_their_own(digits_run, digits):
    images, _ = digits
    run = sop.load(digits_run, changes={"input.test_transforms": "mirror_views"})
    mirrored = sop.load(digits_run).predict(np.ascontiguousarray(images[:, :, ::-1])).logits
    straight = sop.load(digits_run).predict(images).logits
    both = run.predict(images).logits
    np.testing.assert_allclose(both, (straight + mirrored) / 2, rtol=1e-4, atol=1e-5)
    assert run.features(images, at="layer3").shape == (20, 2, 4, 4, 64)


def test_a_run_is_what_it_says(run, digits, digits_run):
    assert run.config.model.representation.reduction == 128 and run.epoch == 3.0
    normalized = run.normalize(digits[0])
    logits = run.model.apply(run.variables, normalized, train=False)
    np.testing.assert_allclose(logits, run.predict(digits[0]).logits, rtol=1e-4, atol=1e-5)
    assert repr(run) == f"<Run {digits_run}: resnet8_cifar, step {run.step}, 10 classes>"
    latest = sop.load(digits_run, checkpoint=run.step)
    np.testing.assert_array_equal(latest.predict(digits[0]).logits, run.predict(digits[0]).logits)


def test_batches_that_no_device_holds_are_refused(digits_run, digits, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda devices, host: 1000)
    with pytest.raises(UsageError, match=r"eval_batch_size = 32 needs .* device has 1 kB"):
        sop.load(digits_run).predict(digits[0])


REFUSALS = {
    "no run": (lambda run, photos: sop.load("/no/such/run"), "/no/such/run holds no run"),
    "no checkpoint": (lambda run, photos: sop.load(run.workdir, 3), "no checkpoint '3'"),
    "no key": (lambda run, photos: sop.load(run.workdir, changes={"seeds": 1}), "'seed'"),
    "no file": (lambda run, photos: run.predict("/no/such.png"), "/no/such.png cannot be decoded"),
    "text": (lambda run, photos: run.predict(photos / "3/text.jpg"), "bytes are not an image"),
    "nothing": (lambda run, photos: run.predict([]), "There are no images"),
    "floats": (lambda run, photos: run.predict(np.zeros((8, 8, 3))), "float64 [8, 8, 3]: give"),
    "grey": (lambda run, photos: run.predict(np.zeros((8, 8), np.uint8)), "uint8 [8]"),
    "sizes": (
        lambda run, photos: run.predict([np.zeros((8, n, 3), np.uint8) for n in (8, 9)]),
        "number 1 becomes 8×9, others 8×8: add",
    ),
    "no layer": (
        lambda run, photos: run.features(np.zeros((8, 8, 3), np.uint8), at="layer7"),
        "no layer 'layer7'. Did you mean 'layer3_0'? There are conv1, bn1, layer1_0, layer2_0, "
        "layer3_0, features, representation, classifier, and those inside them",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence(case, run, photos):
    attempt, sentence = REFUSALS[case]
    with pytest.raises(UsageError) as refusal:
        attempt(run, photos)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
