import subprocess
import sys

import cv2
import numpy as np
import pytest

import input_pipeline
from sop.config import get_config
from sop.data import examples, images, randomness, sources
from sop.errors import UsageError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def config(data_dir):
    config = get_config()
    config.model.num_classes = 10
    config.input.dataset = "digits"
    config.input.data_dir = data_dir
    config.input.eval_split = "test"
    config.input.train_transforms = "pad_crop(8, 1) | flip"
    config.input.eval_transforms = ""
    config.input.normalization = "digits"
    config.input.cache = True
    config.batch_size = 48
    config.eval_batch_size = 96
    return config


def folder_of_images(root, count=6, sizes=((20, 24),), suffix=".png"):
    """Two splits, two classes; the red of image i is 10·i + 5."""
    for split in ("train", "test"):
        for index in range(count):
            folder = root / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = np.zeros((*sizes[index % len(sizes)], 3), np.uint8)
            image[..., 2] = 10 * index + 5
            cv2.imwrite(str(folder / f"{index}{suffix}"), image)
    return f"folder:{root}"


@pytest.fixture
def folder_config(config, tmp_path):
    config.input.dataset = folder_of_images(tmp_path)
    config.input.train_transforms = "random_resized_crop(16)"
    config.input.eval_transforms = "resize_short(20) | center_crop(16)"
    config.input.cache = False
    config.model.num_classes = 2
    config.batch_size = 2
    config.eval_batch_size = 4
    return config


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def joined(shares):
    """Batches of each process → global batches."""
    return [
        {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        for batches in zip(*shares, strict=True)
    ]


def test_training_has_the_advertised_shapes_and_types(config):
    train = input_pipeline.create_train(config)
    batch = next(train.batches())
    assert (train.num_examples, train.num_classes, train.steps_per_epoch) == (1437, 10, 29)
    assert train.image_shape == (8, 8, 3) and train.class_names == list("0123456789")
    assert batch["image"].shape == (48, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (48,) and batch["label"].dtype == np.int32


def test_an_epoch_shows_each_example_at_most_once_and_each_epoch_another_order(config):
    config.input.train_transforms = ""
    train = input_pipeline.create_train(config)
    source = sources.open_source("digits", "train", config.input.data_dir)
    pixels = [images.decode(source[index][0]).tobytes() for index in range(len(source))]
    assert len(set(pixels)) == len(pixels)
    places = {each: index for index, each in enumerate(pixels)}
    steps = train.steps_per_epoch
    batches = take(train.batches(), 3 * steps)
    shown = np.array([places[image.tobytes()] for batch in batches for image in batch["image"]])
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, [source[index][1] for index in shown])
    epochs = shown.reshape(3, -1)
    assert all(len(set(epoch)) == epoch.size for epoch in epochs)
    assert len(set(epochs[0]) ^ set(epochs[1])) > 0  # another remainder is left out
    for first, second in [(0, 1), (1, 2), (0, 2)]:
        assert (epochs[first] == epochs[second]).mean() < 0.01
    assert np.abs(np.corrcoef(np.arange(steps * 48), epochs[0])[0, 1]) < 0.1


def test_the_seed_decides_the_order_and_the_pixels(config):
    first = take(input_pipeline.create_train(config).batches(), 2)
    assert_same(first, take(input_pipeline.create_train(config).batches(), 2))
    config.seed = 1
    other = take(input_pipeline.create_train(config).batches(), 2)
    assert (first[0]["label"] != other[0]["label"]).any()
    # The same example is not augmented alike in two epochs.
    config.batch_size = 1437
    config.input.train_transforms = "flip"
    epochs = take(input_pipeline.create_train(config).batches(), 2)
    rows = [
        np.sort(batch["image"].reshape(1437, -1).astype("u1").view("S192")[:, 0])
        for batch in epochs
    ]
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize("cache", [True, False])
def test_batches_depend_neither_on_workers_nor_on_processes(config, cache):
    config.input.cache = cache
    expected = None
    for workers in (0, 1, 3):
        config.input.num_workers = workers
        for count in (1, 2, 4):
            shares = [
                take(input_pipeline.create_train(config, index, count).batches(27), 4)
                for index in range(count)
            ]
            batches = joined(shares)
            expected = expected or batches
            assert_same(batches, expected)


@pytest.mark.parametrize(
    "transforms",
    [
        "",
        "pad_crop(8, 2) | flip",
        "resize(16, 16) | pad_crop(16, 2) | flip",
        "resize_short(12) | random_resized_crop(10) | flip",
        "random_resized_crop(16) | color_jitter(0.4, 0.4, 0.4) | lighting(0.1)",
    ],
)
def test_the_cache_changes_no_pixel(config, transforms):
    config.input.train_transforms = transforms
    config.batch_size = 400
    decoded = []
    for cache in (True, False):
        config.input.cache = cache
        decoded.append(take(input_pipeline.create_train(config).batches(2), 2))
    assert_same(*decoded)


def test_the_cache_is_not_handed_out(config):
    config.input.train_transforms = ""
    train = input_pipeline.create_train(config)
    batch = next(train.batches())
    before = batch["image"].copy()
    batch["image"][:] = 0
    np.testing.assert_array_equal(next(train.batches())["image"], before)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_can_be_had_by_its_number(config, workers):
    config.input.num_workers = workers
    train = input_pipeline.create_train(config)
    batches = take(train.batches(), 70)
    config.input.num_workers = 2 - workers
    half = input_pipeline.create_train(config, 1, 2)
    for number in (0, 1, 28, 29, 57):
        assert_same(take(train.batches(number), 4), batches[number : number + 4])
        image = next(half.batches(number))["image"]
        np.testing.assert_array_equal(image, batches[number]["image"][24:])


def test_epochs_of_a_later_stage_are_new_ones(config):
    train = input_pipeline.create_train(config)
    steps = train.steps_per_epoch
    assert_same(take(train.batches(0, first_epoch=2), 3), take(train.batches(2 * steps), 3))
    assert_same(take(train.batches(1, first_epoch=2), 3), take(train.batches(2 * steps + 1), 3))


def test_stages_share_images_and_keep_the_order_of_the_run(config):
    other = config.copy_and_resolve_references()
    other.batch_size = 96
    more = config.copy_and_resolve_references()
    more.input.train_transforms = "flip"
    (first, one), (second, two), (third, three) = input_pipeline.create([config, other, more])
    assert first._images is second._images is not third._images
    assert one._images is two._images is three._images
    assert first._images._cached is None  # nothing is decoded before it is asked for
    next(first.batches())
    assert second._images._cached is not None
    labels = np.concatenate([batch["label"] for batch in take(first.batches(), 2)])
    np.testing.assert_array_equal(next(second.batches())["label"], labels)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_evaluation_sees_every_example_once(config, cache, count):
    config.input.cache = cache
    evaluations = [input_pipeline.create_eval(config, index, count) for index in range(count)]
    assert {each.num_batches for each in evaluations} == {4}
    shares = [list(each) for each in evaluations]
    for share in shares:
        assert [len(batch["label"]) for batch in share] == [96 // count] * 4
        assert {batch["image"].shape[1:] for batch in share} == {(8, 8, 3)}
        assert {(batch["mask"].dtype, batch["label"].dtype) for batch in share} == {
            (np.dtype(bool), np.dtype(np.int32))
        }
    batches = joined(shares)
    mask = np.concatenate([batch["mask"] for batch in batches])
    shown = np.concatenate([batch["image"] for batch in batches])[mask]
    labels = np.concatenate([batch["label"] for batch in batches])[mask]
    source = sources.open_source("digits", "test", config.input.data_dir)
    expected = [source[index] for index in range(360)]
    np.testing.assert_array_equal(shown, [images.decode(data) for data, _ in expected])
    np.testing.assert_array_equal(labels, [label for _, label in expected])
    assert_same(list(evaluations[0]), shares[0])


@pytest.mark.parametrize(("view", "views"), [("mirror_views", 2), ("ten_crop(6)", 10)])
def test_evaluation_may_have_views(config, view, views):
    config.input.eval_transforms = f"resize(9, 9) | center_crop(8) | {view}"
    batches = {}
    for cache in (True, False):
        config.input.cache = cache
        evaluation = input_pipeline.create_eval(config)
        batches[cache] = list(evaluation)
    side = evaluation.image_shape[0]
    assert evaluation.image_shape == (side, side, 3) and side == (8 if views == 2 else 6)
    assert {batch["image"].shape for batch in batches[True]} == {(96, views, side, side, 3)}
    assert_same(batches[True], batches[False])


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_of_images_is_read(folder_config, cache):
    folder_config.input.cache = cache
    evaluation = input_pipeline.create_eval(folder_config)
    assert evaluation.class_names == ["a", "b"] and evaluation.image_shape == (16, 16, 3)
    batches = list(evaluation)
    reds = np.concatenate([batch["image"][batch["mask"]][:, 0, 0, 0] for batch in batches])
    assert reds.tolist() == [5, 25, 45, 15, 35, 55]
    train = input_pipeline.create_train(folder_config)
    iterator = train.batches()
    for _ in range(3):
        epoch = take(iterator, train.steps_per_epoch)
        colors = np.concatenate([batch["image"][:, 8, 8, 0] for batch in epoch])
        assert sorted(colors.tolist()) == [5, 15, 25, 35, 45, 55]
        labels = np.concatenate([batch["label"] for batch in epoch])
        np.testing.assert_array_equal(labels, colors // 10 % 2)


def break_images(folder_config, tmp_path, *names):
    for name in names:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("cache", [True, False])
def test_an_undecodable_image_stops_the_run_by_its_name(folder_config, tmp_path, cache):
    break_images(folder_config, tmp_path, "train/b/3.png")
    folder_config.input.cache = cache
    with pytest.raises(UsageError, match=r"train/b/3.png cannot be decoded.*bad_images = 'skip'"):
        take(input_pipeline.create_train(folder_config).batches(), 3)


def test_an_undecodable_image_stops_every_batch_that_holds_it(folder_config, tmp_path):
    """Whichever is made first: those that are made ahead may be of the next epoch."""
    break_images(folder_config, tmp_path, "train/b/3.png")
    folder_config.input.num_workers = 0
    for start in (3, 0):
        batches = input_pipeline.create_train(folder_config)
        for _ in range(2):
            with pytest.raises(UsageError, match="cannot be decoded"):
                take(batches.batches(start), 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_counted_and_skipped(folder_config, tmp_path, workers, capsys):
    break_images(folder_config, tmp_path, "train/b/3.png", "train/b/5.png", "test/a/2.png")
    folder_config.input.train_transforms = "resize(16, 16) | random_resized_crop(16)"
    folder_config.input.bad_images = "skip"
    folder_config.input.num_workers = workers
    epochs, evaluated = [], []
    for cache in (True, False):
        folder_config.input.cache = cache
        train = input_pipeline.create_train(folder_config)
        epochs.append(take(train.batches(), 3))
        assert {name[-13:] for name in train.bad_images} == {"train/b/3.png", "train/b/5.png"}
        evaluation = input_pipeline.create_eval(folder_config)
        evaluated.append(list(evaluation))
        assert len(evaluation.bad_images) == 1
    assert_same(*epochs)
    assert_same(*evaluated)
    said = capsys.readouterr().err
    assert all(f"{name} cannot be decoded" in said for name in ("b/3.png", "b/5.png", "a/2.png"))
    assert "it is skipped (2 so far)." in said
    # In the order of the folder 3 and 5 come after 1 and before 0, which stands in for 5; for 3
    # does the next good one, which is 0 as well.
    colors = np.concatenate([batch["image"][:, 8, 8, 0] for batch in epochs[0]])
    assert sorted(colors.tolist()) == [5, 5, 5, 15, 25, 45]
    masks = np.concatenate([batch["mask"] for batch in evaluated[0]])
    assert masks.tolist() == [True, False, True, True, True, True, False, False]


@pytest.mark.parametrize("cache", [True, False])
def test_images_that_stay_of_unequal_size_are_refused(folder_config, tmp_path, cache):
    folder_config.input.dataset = folder_of_images(tmp_path / "own", sizes=((20, 24), (30, 24)))
    folder_config.input.cache = cache
    folder_config.input.eval_transforms = "resize_short(10)"
    message = r"become 10×12 \(.*\) and 12×10 \(.*\); add a transform .*center_crop\(10\)"
    with pytest.raises(UsageError, match=message):
        input_pipeline.create_eval(folder_config)
    folder_config.input.train_transforms = "flip"
    with pytest.raises(UsageError, match=r"20×24 .* and 30×24"):
        input_pipeline.create_train(folder_config)


def test_an_image_whose_size_was_not_probed_is_refused_when_met(
    folder_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(examples, "_NUM_PROBED", 2)
    folder_config.input.dataset = folder_of_images(
        tmp_path / "own", 4, ((20, 24), (20, 24), (9, 9))
    )
    folder_config.input.eval_transforms = ""
    with pytest.raises(UsageError, match=r"test/a/2.png becomes 9×9, others 20×24"):
        list(input_pipeline.create_eval(folder_config))


def test_a_jpeg_behind_the_first_record_counts_for_the_cache_too(folder_config, tmp_path):
    dataset = folder_of_images(tmp_path / "own", sizes=((80, 80),))
    last = tmp_path / "own" / "train" / "b" / "5.png"
    cv2.imwrite(str(last.with_suffix(".jpg")), cv2.imread(str(last)))
    folder_config.input.dataset = dataset
    folder_config.input.cache = True
    with pytest.raises(UsageError, match="keep images of 80×80 to make crops of 16×16"):
        next(input_pipeline.create_train(folder_config).batches())
    last.with_suffix(".jpg").unlink()
    next(input_pipeline.create_train(folder_config).batches())


def test_a_cache_of_jpegs_much_larger_than_their_crops_is_refused(folder_config, tmp_path):
    folder_config.input.cache = True
    large = folder_of_images(tmp_path / "own", sizes=((80, 80),), suffix=".jpg")
    folder_config.input.dataset = large
    with pytest.raises(UsageError, match="keep images of 80×80 to make crops of 16×16"):
        next(input_pipeline.create_train(folder_config).batches())
    folder_config.input.train_transforms = "resize(40, 40) | random_resized_crop(16)"
    batches = []
    for cache in (True, False):
        folder_config.input.cache = cache
        batches.append(take(input_pipeline.create_train(folder_config).batches(), 3))
    assert_same(*batches)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 49, "config.batch_size = 49 cannot be divided among 2 processes"),
        ("batch_size", 1438, "exceeds the 1437 examples"),
        ("eval_batch_size", 95, "config.eval_batch_size = 95 cannot be divided"),
        ("model.num_classes", 11, "num_classes = 11, but data set 'digits' has 10 classes"),
        ("input.train_split", "validation", "no split 'validation'"),
        ("input.dataset", "digist", "did you mean digits"),
        ("input.dataset", "cifar10", "run: python -m sop.data.prepare cifar10"),
        ("input.dataset", "folder:/no/such", "does not exist"),
        ("input.normalization", "imagnet", "Normalization 'imagnet' is unknown"),
        ("input.train_transforms", "blur(3)", "there is no transform 'blur'"),
        ("input.eval_transforms", "flip", "flip is random"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_a_sentence(config, key, value, message):
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UsageError, match=message) as refusal:
        input_pipeline.create_train(config, 0, 2)
        input_pipeline.create_eval(config, 0, 2)
    assert "\n" not in str(refusal.value) and not str(refusal.value).endswith("\n")


def test_training_imports_no_tensorflow(config):
    program = (
        "import sys, input_pipeline; from sop.config import get_config; c = get_config();"
        "c.update_from_flattened_dict({'model.num_classes': 10, 'input.dataset': 'digits',"
        f"'input.data_dir': {config.input.data_dir!r}, 'input.train_transforms': 'flip'}});"
        "next(input_pipeline.create_train(c).batches());"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("cache", [False, True])
def test_nothing_but_bad_images_is_refused(folder_config, tmp_path, cache):
    folder_config.input.bad_images = "skip"
    folder_config.input.train_transforms = "resize_short(20) | center_crop(16)"
    folder_config.input.cache = cache
    folder_config.input.num_workers = 0
    train = input_pipeline.create_train(folder_config)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"None of the 6 images, such as .*/train/a/0\.png"):
        next(train.batches())


def test_the_next_good_image_stands_in_whatever_is_known(folder_config, tmp_path):
    """Also where it is found to be bad first: the batch is a function of its number."""
    folder_config.input.bad_images = "skip"
    folder_config.input.num_workers = 0
    for name in ("a/0", "a/2", "b/3"):
        (tmp_path / "train" / f"{name}.png").write_bytes(b"no image")
    one = take(input_pipeline.create_train(folder_config).batches(), 6)
    assert_same(one, take(input_pipeline.create_train(folder_config).batches(), 6))
    assert_same(one[3:], take(input_pipeline.create_train(folder_config).batches(3), 3))


def test_identity_is_the_sources(folder_config):
    train, evaluation = input_pipeline.create([folder_config])[0]
    assert train.identity["split"] == "train" and evaluation.identity["split"] == "test"
    assert train.identity["examples"] == 6 and train.identity["classes"] == ["a", "b"]


def test_an_order_that_is_not_held_shows_each_example_once_too(config, monkeypatch):
    """On all processes together, and from any batch on."""
    monkeypatch.setattr(randomness, "LARGEST_ORDER", 1000)
    train = input_pipeline.create_train(config)
    shown = np.concatenate([train._examples(1, place) for place in range(train.steps_per_epoch)])
    assert len(np.unique(shown)) == shown.size == 48 * train.steps_per_epoch
    shares = [
        take(input_pipeline.create_train(config, index, 2).batches(20), 12) for index in range(2)
    ]
    assert_same(joined(shares), take(train.batches(), 32)[20:])
