"""Folders of images, some of which are none."""

import functools
import io
import os
import random
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import input_pipeline
from sop.config import get_config
from sop.errors import UsageError
from tests.torture.trial import Bench, Trial

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO")
_MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "LA")
_NAMES = ("{}", ".{}", "._{}", "ä {}", "{}.bak")
_SECONDS = 20  # for sixteen small images


def folder(rng: random.Random, bench: Bench) -> Trial:
    """Every image of an epoch comes out whole or is refused, and soon."""
    path = bench.new_folder()
    config = get_config()
    config.model.num_classes = 2
    config.batch_size = config.eval_batch_size = rng.choice([1, 2, 4])
    config.input.dataset = f"folder:{path}"
    config.input.eval_split = "test"
    config.input.train_transforms = rng.choice(
        ["random_resized_crop(8) | flip", "resize_short(9) | center_crop(8)", "center_crop(8)"]
    )
    config.input.eval_transforms = "resize_short(9) | center_crop(8)"
    config.input.normalization = "none"
    config.input.cache = rng.random() < 0.5 and "random" not in config.input.train_transforms
    config.input.num_workers = rng.choice([0, 2])
    config.input.bad_images = rng.choice(["skip", "stop"])
    share = rng.choice([0, 0.2, 0.7, 1])
    seed = rng.random()

    def run() -> None:
        contents = random.Random(seed)
        for split in ("train", "test"):
            for name in "ab":
                (path / split / name).mkdir(parents=True)
                for number in range(4):
                    _write(path / split / name, number, contents, share)
        begun = time.monotonic()
        try:
            [(train, evaluation)] = input_pipeline.create([config])
            batches = train.batches()
            seen = [next(batches) for _ in range(train.steps_per_epoch)]
            seen += list(evaluation)
        except UsageError as error:
            assert 20 < len(str(error)) < 800, str(error)[:800]
            seen = []
        seconds = time.monotonic() - begun
        assert seconds < _SECONDS, f"{seconds:.0f} s for 16 images"
        for batch in seen:
            shown = batch["image"][batch.get("mask", slice(None))]
            assert all(image.any() for image in shown), "a black image in the place of a bad one"
        bench.clean(path)

    doing = f"{share:.0%} bad images, bad_images={config.input.bad_images}"
    return Trial(f"{doing}, {config.input.train_transforms}, cache={config.input.cache}", run)


def _write(where: Path, number: int, rng: random.Random, share: float) -> None:
    """One file, broken with some probability."""
    kind = rng.choice(_FORMATS)
    suffix = f"{number}.{kind.lower()}"
    name = suffix if rng.random() < 0.8 else rng.choice(_NAMES).format(suffix)
    data = _picture(rng, kind)
    file = where / name
    if rng.random() >= share:
        file.write_bytes(data)
        return
    place = rng.randrange(len(data))
    match rng.randrange(9):
        case 0:
            file.write_bytes(data[:place])
        case 1:
            file.write_bytes(data[:place] + rng.randbytes(4) + data[place + 4 :])
        case 2:
            file.write_bytes(rng.randbytes(rng.randrange(1, 2000)))
        case 3:
            file.mkdir()
        case 4:
            file.symlink_to(where / "nowhere")
        case 5:
            os.mkfifo(file)
        case 6:
            file.write_bytes(b"")
        case 7:
            file.write_bytes(_huge(rng.choice(["PNG", "GIF"])))
        case _:
            file.symlink_to(file)


@functools.cache
def _huge(kind: str) -> bytes:
    """An encoded image that unpacks to 400 MB; it takes seconds to make."""
    buffer = io.BytesIO()
    Image.new("L", (20000, 20000), 7).save(buffer, kind)
    return buffer.getvalue()


def _picture(rng: random.Random, kind: str) -> bytes:
    """An encoded image without a black pixel row, 9 to 60 pixels a side."""
    size = rng.randint(9, 60), rng.randint(9, 60)
    image = Image.effect_noise(size, 40).convert("RGB")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1]), fill=(200, 120, 60))
    mode = rng.choice(_MODES)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200 + 50)
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, ValueError, KeyError):  # that format has no such mode
        image.convert("RGB").save(buffer, kind)
    return buffer.getvalue()
