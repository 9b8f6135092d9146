"""Experiment trackers as callbacks: what ``metrics.jsonl`` holds, step by step, somewhere else.

    run = potstill.Run(watch=tracker("tensorboard", "runs/demo"))    # while it runs
    replay("runs/demo", tracker("wandb", "runs/demo"))               # afterwards, from the file

None of them is required or installed with potstill.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.run.errors import InputError, nearest
from potstill.run.log import read

__all__ = ["TRACKERS", "replay", "tracker"]

Watch = Callable[[int, dict[str, Any], Any], None]
Log = Callable[[int, dict[str, float]], None]


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the single numbers of a record by name: lr, seconds, loss/NAME."""
    named = {key: value for key, value in record.items() if key in ("lr", "seconds")}
    return named | {f"loss/{name}": value for name, value in record.get("loss", {}).items()}


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"track is {package!r}, which is not installed; pip install {package}"
        ) from None


def _tensorboard(folder: Path) -> Log:
    writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "track"))

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _experiment(package: str) -> Callable[[Path], Log]:
    """Trackers with the two calls ``init`` and ``log``."""

    def begin(folder: Path) -> Log:
        module = _module(package, package)
        module.init(project="potstill", name=folder.name)
        return lambda step, values: module.log(values, step=step)

    return begin


TRACKERS: dict[str, Callable[[Path], Log]] = {
    "tensorboard": _tensorboard,
    "wandb": _experiment("wandb"),
    "trackio": _experiment("trackio"),
}


def tracker(name: str, folder: str | Path) -> Watch:
    """Return a callback for :class:`potstill.Run` that sends its records to a tracker.

    Args:
        name: of :data:`TRACKERS`. folder: of the run; its name is that of the experiment.

    Raises:
        InputError: there is no such tracker, or it is not installed.
    """
    if name not in TRACKERS:
        raise InputError(f"track is {name!r}{nearest(name, TRACKERS)}")
    log = TRACKERS[name](Path(folder))

    def watch(step: int, record: dict[str, Any], canvas: Any) -> None:
        log(step, scalars(record))

    return watch


def replay(folder: str | Path, watch: Watch) -> int:
    """Send what ``metrics.jsonl`` of a run holds to a callback; return how many records.

    Raises:
        StorageError: the file cannot be read.
    """
    records = read(Path(folder) / "metrics.jsonl")
    for record in records:
        watch(record["step"], record, None)
    return len(records)
