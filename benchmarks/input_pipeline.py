"""Images per second and core of the input pipeline, against Pillow, torchvision and tf.data.

    python benchmarks/input_pipeline.py [--repeats=9]

prints a markdown table. torchvision and TensorFlow take part where they are installed. Photographs
come from scikit-learn. "Per core" divides by processor time: of the one thread that works, and of
all threads for tf.data, which has more. Repetitions of the pipelines are interleaved.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from tables import print_header, print_row

import input_pipeline
from sop.config import get_config

BATCH = 64
# Height and width of ImageNet's photographs: most have a long side of 500, some are large.
IMAGENET_SIZES = [(375, 500)] * 9 + [(500, 375)] * 3 + [(333, 500)] * 3 + [(800, 1000)]


@dataclasses.dataclass
class Case:
    """One kind of images and what is done to it, in the words of each library."""

    title: str
    files: list[Path]
    transforms: str
    training: bool
    cached: bool


def write_images(root: Path, sizes: list[tuple[int, int]], suffix: str, count: int) -> list[Path]:
    """Random parts of scikit-learn's photographs, resized, as train/CLASS/*, test/CLASS/*."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        photograph = photographs[index % 2]
        wide, high = (int(side * random.uniform(0.6, 1)) for side in photograph.size)
        left = int(random.uniform(0, photograph.width - wide))
        top = int(random.uniform(0, photograph.height - high))
        part = photograph.resize(
            (width, height), Image.Resampling.BICUBIC, (left, top, left + wide, top + high)
        )
        for split in ("train", "test"):
            folder = root / split / str(index % 2)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{index:05d}{suffix}"
            part.save(file, quality=95)
        files.append(root / "train" / str(index % 2) / file.name)
    return files


def ours(case: Case, workers: int = 0) -> Iterator[np.ndarray]:
    config = get_config()
    config.model.num_classes = 2
    config.input.dataset = f"folder:{case.files[0].parents[2]}"
    config.input.eval_split = "test"
    config.input.cache = case.cached
    config.input.num_workers = workers
    config.batch_size = config.eval_batch_size = BATCH
    if case.training:
        config.input.train_transforms = case.transforms
        for batch in input_pipeline.create_train(config).batches():
            yield batch["image"]
    config.input.eval_transforms = case.transforms
    evaluation = input_pipeline.create_eval(config)
    while True:
        for batch in evaluation:
            yield batch["image"]


def pillow(case: Case) -> Iterator[np.ndarray]:
    """The transforms of torchvision written out: Pillow on one image at a time, in order."""
    random = np.random.default_rng(0)
    bilinear = Image.Resampling.BILINEAR

    def crop(image: Image.Image) -> Image.Image:
        while True:
            area = image.width * image.height * random.uniform(0.08, 1)
            ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if width <= image.width and height <= image.height:
                left = random.integers(image.width - width + 1)
                top = random.integers(image.height - height + 1)
                box = (left, top, left + width, top + height)
                return flip(image.resize((224, 224), bilinear, box))

    def flip(image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image

    def center(image: Image.Image) -> Image.Image:
        scale = 256 / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), bilinear)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return image.crop((left, top, left + 224, top + 224))

    def pad(image: Image.Image) -> Image.Image:
        left, top = random.integers(-4, 5, 2)
        return flip(image.crop((left, top, left + 32, top + 32)))

    change = {"random": crop, "resize": center, "pad": pad}[case.transforms.split("_")[0]]

    def read(file: Path) -> Image.Image:
        return Image.open(file).convert("RGB")

    source = [np.asarray(read(file)) for file in case.files] if case.cached else case.files
    load = Image.fromarray if case.cached else read
    while True:
        for start in range(0, len(source), BATCH):
            yield np.stack([np.asarray(change(load(x))) for x in source[start : start + BATCH]])


def torchvision(case: Case) -> Iterator[np.ndarray]:
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    steps = {
        "random": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "resize": [transforms.Resize(256), transforms.CenterCrop(224)],
        "pad": [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()],
    }[case.transforms.split("_")[0]]
    transform = transforms.Compose([*steps, transforms.PILToTensor()])

    def read(file: Path) -> Image.Image:
        return Image.open(file).convert("RGB")

    arrays = [np.asarray(read(file)) for file in case.files] if case.cached else None

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(case.files)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.fromarray(arrays[index]) if arrays else read(case.files[index])
            return transform(image)

    loader = torch.utils.data.DataLoader(Files(), BATCH, shuffle=case.training)
    while True:
        yield from loader


def tf_data(case: Case) -> Iterator[np.ndarray]:
    import tensorflow as tf

    def crop(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.image.random_flip_left_right(resize(image, (224, 224)))

    def resize(image, size):
        return tf.cast(tf.image.resize(image, size, "bilinear", antialias=True), tf.uint8)

    def center(data):
        image = tf.image.decode_jpeg(data, channels=3)
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
        scale = 256 / tf.minimum(height, width)
        image = resize(image, tf.cast((height * scale, width * scale), tf.int32))
        return tf.image.resize_with_crop_or_pad(image, 224, 224)

    def decode(data):
        return tf.image.decode_png(data, channels=3)

    def pad(image):
        image = tf.image.random_crop(tf.pad(image, [(4, 4), (4, 4), (0, 0)]), (32, 32, 3))
        return tf.image.random_flip_left_right(image)

    data = tf.data.Dataset.from_tensor_slices([str(file) for file in case.files])
    data = data.map(tf.io.read_file)
    if case.transforms.startswith("pad"):
        data = data.map(decode)
        data = data.cache() if case.cached else data
        change = pad
    else:
        change = crop if case.training else center
    data = data.shuffle(len(case.files)).repeat() if case.training else data.repeat()
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    # Else it would go on working while the others are measured.
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return data.map(change).batch(BATCH).with_options(options).as_numpy_iterator()


def contenders() -> dict[str, Callable[[Case], Iterator]]:
    found = {"ours": ours, "Pillow": pillow}
    if importlib.util.find_spec("torchvision"):
        found["torchvision"] = torchvision
    if importlib.util.find_spec("tensorflow"):
        found["tf.data"] = tf_data
    return found


def rate(batches: Iterator, num_batches: int, clock: Callable[[], float]) -> float:
    start = clock()
    images = sum(len(next(batches)) for _ in range(num_batches))
    return images / (clock() - start)


def settled_process_time() -> float:
    """Processor time of all threads, once those in the background have filled their buffers."""
    time.sleep(0.5)
    return time.process_time()


def measure(case: Case, repeats: int) -> Iterator[tuple]:
    """The rows of one case; the ratio is the median of those of interleaved repetitions."""
    num_batches = 200 if case.cached else 4
    runs = {name: (make(case), []) for name, make in contenders().items()}
    for batches, _ in runs.values():
        rate(batches, num_batches, time.thread_time)  # warm
    for _ in range(repeats):
        for name, (batches, rates) in runs.items():
            clock = settled_process_time if name == "tf.data" else time.thread_time
            rates.append(rate(batches, num_batches, clock))
    for name, (_, rates) in runs.items():
        ratio = statistics.median(a / b for a, b in zip(runs["ours"][1], rates, strict=True))
        spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
        yield case.title, name, statistics.median(rates), spread, ratio


PER_CORE = {
    "images": "{}",
    "pipeline": "{}",
    "images/s and core": "{:,.0f}",
    "least–most": "{}",
    "ours ÷ it": "{:.2f}",
}
IN_ALL = {"images, ours": "{}", "workers": "{}", "images/s in all (wall clock)": "{:,.0f}"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    return parser


def main() -> None:
    repeats = make_parser().parse_args().repeats
    print(f"{machine()}; batches of {BATCH}, {repeats} repetitions.")
    print_header(PER_CORE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs = write_images(root / "imagenet", IMAGENET_SIZES, ".jpg", 128)
        large = write_images(root / "large", [(1200, 1600)], ".jpg", 64)
        small = write_images(root / "cifar", [(32, 32)], ".png", 2048)
        crop, middle = "random_resized_crop(224)", "resize_short(256) | center_crop(224)"
        cases = [
            Case("ImageNet-sized JPEG, random crop", photographs, f"{crop} | flip", True, False),
            Case("ImageNet-sized JPEG, central crop", photographs, middle, False, False),
            Case("1600×1200 JPEG, random crop", large, f"{crop} | flip", True, False),
            Case("32×32 PNG", small, "pad_crop(32, 4) | flip", True, False),
            Case("32×32 in memory", small, "pad_crop(32, 4) | flip", True, True),
        ]
        for case in cases:
            for row in measure(case, repeats):
                print_row(PER_CORE, dict(zip(PER_CORE, row, strict=True)))
        print_header(IN_ALL)
        for case in cases:
            for workers in (0, 1, os.cpu_count()):
                batches = ours(case, workers)
                num_batches = 200 if case.cached else 6
                rate(batches, workers + 3, time.perf_counter)  # fills what is prefetched
                rates = [rate(batches, num_batches, time.perf_counter) for _ in range(repeats)]
                row = (case.title, workers, statistics.median(rates))
                print_row(IN_ALL, dict(zip(IN_ALL, row, strict=True)))


def machine() -> str:
    """Processor, cores, versions and date, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ["numpy", "grain", "opencv-python-headless", "pillow", "torchvision", "tensorflow"]
    versions = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
    found = [f"{name} {versions[name]}" for name in packages if name in versions]
    return (
        f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {', '.join(found)}; {datetime.date.today()}"
    )


if __name__ == "__main__":
    main()
