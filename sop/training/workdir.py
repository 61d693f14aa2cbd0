"""The work folder of a run: made, locked against a second run, and tied to one config."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ml_collections import ConfigDict

from sop.config.validation import as_json, differences, from_json, may_change
from sop.detection import resolve
from sop.errors import UsageError
from sop.training.durable import write_json
from sop.training.lock import HeldError, lock, token_in
from sop.training.saved import saved_progress, steps_in
from sop.training.storage import locate


class WorkDir:
    """A work folder in use by this process: a context, which it must be for as long as it runs.

    A lock keeps a second run out, see `sop.training.lock`; after a kill the same command may be
    started again.

    Attributes:
      path: the folder, made if need be.
    Raises:
      UsageError: the folder cannot be made or written, or another live process uses it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = locate(path)
        try:
            self._lock = lock(self.path)
        except OSError as error:
            raise UsageError(
                f"Work folder {path} cannot be written ({error.strerror}): "
                "choose another --workdir or change its permissions."
            ) from error
        except HeldError as error:
            raise UsageError(
                f"Work folder {path} is in use by a live run ({error}): "
                "wait for it, stop it, or choose another --workdir."
            ) from error

    def sign(self, token: str) -> None:
        """Writes who uses the folder, and a token by which other processes of the run know it."""
        self._lock.sign(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder."""
        self._lock.close()

    def settle_config(self, config: Mapping[str, Any]) -> None:
        """Ties the folder to `config`, in `config.json`; call it before the first step.

        A folder with checkpoints holds a run: `config` may then differ from `config.json` only in
        keys that the schema lets change on resuming, and the file is brought up to date.

        Raises:
          UsageError: naming each key that differs, with both values.
        """
        present = as_json(config)
        refuse_another_config(self.path, config)
        if not steps_in(self.path) or read_config(self.path) != present:
            write_json(self.path / "config.json", present)

    def settle_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Refuses to go on with other data than those of the run's checkpoints.

        Args:
          data: of each stage {'train': …, 'evaluation': …}, see `TrainData.identity`.
        Raises:
          UsageError: naming what differs.
        """
        saved = saved_progress(self.path).get("data") or ()
        for before, now in zip(saved, data, strict=False):
            for part in ("train", "evaluation"):
                if changes := _data_changes(before[part], now[part]):
                    raise UsageError(
                        f"Work folder {self.path} holds a run on other data: in split "
                        f"{now[part]['split']!r}, {'; '.join(changes)}. Restore them, or choose "
                        "another --workdir."
                    )


def refuse_another_config(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Refuses to go on in work folder `path`, if it has checkpoints, with a config of another run.

    Raises:
      UsageError: naming each key that differs and may not, with both values.
    """
    if steps_in(path):
        saved, present = read_config(path), as_json(config)
        changed = _changes(saved, present)
        refused = [key for key in changed if not _may_change(key, saved, present)]
        _refuse(path, {key: changed[key] for key in refused})


def refuse_another_folder(path: str | os.PathLike, token: str, seconds: float = 10) -> None:
    """Refuses a work folder that is not the one that process 0 has signed with `token`.

    Args:
      seconds: how long a network file system may take to show it.
    Raises:
      UsageError: the folder is another.
    """
    deadline = time.monotonic() + seconds
    while True:
        if token in token_in(locate(path)):
            return
        if time.monotonic() > deadline:
            raise UsageError(
                f"Work folder {path} on {socket.gethostname()} is not that of process 0: give all "
                "processes one --workdir, on a file system that all of them see."
            )
        time.sleep(0.1)


def refuse_moved_classes(path: str | os.PathLike, config: ConfigDict, now: Mapping) -> None:
    """Refuses to evaluate on a data set whose classes have other numbers than in training.

    Another data set than the training's may name its classes as it likes.

    Raises:
      UsageError: naming the first class that differs.
    """
    progress = saved_progress(path)
    if not progress.get("data") or progress["config"]["input"]["dataset"] != config.input.dataset:
        return
    if changes := _class_changes(progress["data"][-1]["train"]["classes"], now["classes"]):
        raise UsageError(
            f"The run in {path} was trained on other classes: {'; '.join(changes)}. Restore them."
        )


def _data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    changes = _class_changes(before["classes"], now["classes"])
    if before["examples"] != now["examples"]:
        changes.append(f"there were {before['examples']} examples, now {now['examples']}")
    if not changes and before["files"] != now["files"]:
        changes.append("files have other names or sizes")
    return changes


def _class_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    if len(before) != len(now):
        return [f"there were {len(before)} classes, now {len(now)}"]
    moved = ((i, a, b) for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
    return [f"class {i} was {a!r}, is {b!r}" for i, a, b in moved][:1]


def _may_change(key: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    return may_change(key, saved) and may_change(key, present)


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in work folder `path`, as its newest checkpoint has it.

    Before the first checkpoint, and in folders of earlier versions, that of `config.json`.

    Raises:
      UsageError: the folder has neither.
    """
    if (config := saved_progress(path).get("config")) is not None:
        return config
    file = locate(path) / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"Work folder {path} holds no run (no config.json): check --workdir, train first, or "
            "give the --config of its weights."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}): restore it or start in another --workdir."
        ) from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} holds no config: restore it or start in another --workdir.")
    return config


def run_config(path: str | os.PathLike) -> ConfigDict:
    """The checked config of the run in work folder `path`, to use it as it was trained.

    Raises:
      UsageError: there is no run, or its config cannot be read.
    """
    saved = read_config(path)
    try:
        return from_json(saved)
    except UsageError as error:
        raise UsageError(
            f"The config of the run in {path} cannot be used ({str(error).rstrip('.')}): give one "
            "with --config."
        ) from error


def refuse_another_model(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Refuses to read the checkpoints of work folder `path` into another model than theirs.

    Earlier conversions left no `config.json`: of their weights the shapes alone can tell.

    Raises:
      UsageError: `config.model` differs from the folder's, or the folder holds no run.
    """
    if not steps_in(path) or (locate(path) / "config.json").exists():
        changed = _changes(read_config(path), as_json(config))
        _refuse(path, {key: pair for key, pair in changed.items() if key.startswith("model.")})


def with_whole_model(config: ConfigDict) -> ConfigDict:
    """A config with all that its model means (`sop.detection.resolve`): what a run writes down."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(resolve(config.model))
    return config


def _changes(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """See `differences`; of models, what remains when all that they mean is written out."""
    changed = differences(saved, present)
    if any(key.startswith("model.") for key in changed):
        with contextlib.suppress(UsageError):  # of a model that cannot be made any more
            configs = (
                {**each, "model": resolve(from_json(each).model)} for each in (saved, present)
            )
            changed = differences(*map(as_json, configs))
    # Of a part that is another the options say nothing more.
    renamed = {key.removesuffix("name") for key in changed if key.endswith(".name")}
    return {
        key: pair
        for key, pair in changed.items()
        if key.endswith(".name") or key.rpartition(".")[0] + "." not in renamed
    }


def _refuse(path: str | os.PathLike, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if changed:
        pairs = "; ".join(
            f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items()
        )
        raise UsageError(
            f"Work folder {path} holds a run of another config ({pairs}): "
            "restore these values, or choose another --workdir."
        )
