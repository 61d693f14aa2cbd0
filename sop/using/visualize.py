"""`main.py --mode=visualize`: pictures of where a network looks and what its methods say."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from sop.errors import UsageError, did_you_mean, show
from sop.progress import shown
from sop.training.durable import refuse_full_disk
from sop.training.storage import locate, write_atomically
from sop.training.workdir import run_config
from sop.using.figures import caption, first_view, short
from sop.using.images import UNLABELLED, Loader
from sop.using.inside import Look
from sop.using.pictures import Seen, draw
from sop.using.predict import open_both
from sop.using.predictions import Predictions
from sop.using.run import Run, open_run

FOLDER = "pictures"
_BATCH = 16  # images; what is found of each is large


def visualize(
    config: ConfigDict,
    workdir: str,
    checkpoint: str,
    images: Sequence[str],
    against: str | None = None,
    layer: str | None = None,
    explained: str | None = None,
    out: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes for each image NUMBER-NAME.png, see `sop.using.pictures.draw`, and NUMBER-NAME.npz.

    The latter holds the arrays of `sop.using.inside.Look`, 'image' and 'classes' (the predicted and
    the explained one); those of the run that it is drawn against under 'against/'.

    Args:
      config, workdir, checkpoint, images: see `sop.using.predict.predict`.
      against: work folder of a second run, whose best checkpoint is given the same images.
      layer: see `Look`.
      explained: name or number of the class of Grad-CAM; None: the likeliest of each image.
      out: folder for the files; None: `WORKDIR/pictures`.
      say: called with each line for the user.
    Returns:
      The folder.
    Raises:
      UsageError: there is no run, layer or class, or no image that can be decoded.
    """
    run, pictures = open_both(config, workdir, checkpoint, images, say)
    runs = [run]
    if against is not None:
        runs.append(open_run(against, run_config(against), "best", say))
    viewers = [_Viewer(each, layer, explained) for each in runs]
    folder = locate(out) if out else locate(workdir) / FOLDER
    bad: dict[str, str] = {}
    batches = Loader.of(run.config).batches(pictures, _BATCH)
    drawn = 0
    for batch in shown(((len(each.images), each) for each in batches), len(pictures), "drawing"):
        for row, reason in batch.bad.items():
            bad[pictures.describe(batch.first + row)] = reason
        good = [row for row in range(len(batch.images)) if row not in batch.bad]
        found = [viewer(batch.images[good]) for viewer in viewers] if good else []
        for place, row in enumerate(good):
            name = pictures.describe(batch.first + row)
            with refuse_full_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                stem = folder / f"{batch.first + row:04}-{_stem(name)}"
                seen = [each[place] for each in found]
                draw(f"{stem}.png", _heading(name, batch.labels[row], run), seen)
                arrays = io.BytesIO()
                # NumPy's annotation takes every keyword for its flag allow_pickle.
                np.savez_compressed(arrays, **_arrays(seen))  # type: ignore[arg-type]
                write_atomically(f"{stem}.npz", arrays.getvalue())
            drawn += 1
    if not drawn:
        name, reason = next(iter(bad.items()))
        raise UsageError(f"The image {name} cannot be decoded, {reason}: name others in --images.")
    for name, reason in bad.items():
        say(f"{name} cannot be decoded, {reason}")
    say(f"{drawn} picture{'s' if drawn > 1 else ''} of layer {viewers[0].layer}: {folder}/*.png")
    return folder


class _Viewer:
    """Looks at batches of images with one run."""

    def __init__(self, run: Run, layer: str | None, explained: str | None):
        self._run, self._asked = run, layer
        self._class = -1 if explained is None else find_class(explained, run)
        self._look: Look | None = None

    @property
    def layer(self) -> str:
        return self._look.layer if self._look is not None else ""

    def __call__(self, images: np.ndarray) -> list[Seen]:
        views = np.stack([first_view(image) for image in images])
        if self._look is None:
            self._look = Look(self._run, views.shape[1:], self._asked)
        said = Predictions(self._run.logits(images), self._run.class_names)
        classes = said.labels if self._class < 0 else np.full(len(images), self._class)
        found = self._look(views, classes)
        shares = said.probabilities
        return [
            Seen(
                run=short(locate(self._run.workdir).name),
                image=views[row],
                says=f"{short(said.names[row])} ({shares[row].max():.1%})",
                explained=f"{short(said.class_names[number])} ({shares[row, number]:.1%})",
                layer=self._look.layer,
                found={name: value[row] for name, value in found.items()}
                | {"classes": np.array([said.labels[row], number])},
            )
            for row, number in enumerate(classes)
        ]


def find_class(asked: str, run: Run) -> int:
    """The number of the class that a user names, or gives by its number.

    Raises:
      UsageError: there is none.
    """
    names = run.class_names
    if asked in names:
        return names.index(asked)
    if asked.isascii() and asked.isdigit() and int(asked) < len(names):
        return int(asked)
    raise UsageError(
        f"There is no class {show(asked)} in {run.workdir}: give a number from 0 to "
        f"{len(names) - 1} or a name, such as {show(names[0])}.{did_you_mean(asked, names)}"
    )


def _heading(name: str, label: int, run: Run) -> str:
    right = f", is {short(run.class_names[label])}" if label != UNLABELLED else ""
    return f"{short(caption(name))}{right}"


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", Path(caption(name)).stem)[-80:] or "image"


def _arrays(seen: Sequence[Seen]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for prefix, each in zip(("", "against/"), seen, strict=False):
        values = {**each.found, "image": each.image}
        arrays |= {f"{prefix}{name}": value for name, value in values.items()}
    return arrays
