"""One distillation from a source to a run folder that can be killed and resumed.

runs/x/run.json               what runs here and whether it has finished
runs/x/metrics.jsonl          losses and per-class diagnostics over the steps
runs/x/checkpoint.safetensors state to resume from
runs/x/pictures/              real examples and the images at a few steps
runs/x/synthetic/             the artifact (see potstill.synthetic)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from potstill.app.opening import Data, fold_of
from potstill.data import ImageSet
from potstill.methods import Method, find
from potstill.reports.gallery import Gallery, picture_real
from potstill.run import InputError, Run, logger
from potstill.run.checkpoint import digest, write_json
from potstill.run.errors import system_refusals
from potstill.run.fields import Batch, check_value
from potstill.run.folder import claimed
from potstill.synthetic import SyntheticSet

__all__ = ["Data", "distill"]


@system_refusals()
def distill(
    method: Method | str,
    data: Any = "digits",
    *,
    ipc: int = 10,
    out: str | Path | None = None,
    run: Run | None = None,
    budget: str = "quick",
    imbalance_factor: float = 1.0,
    force: bool = False,
    label: str | None = None,
    **options: Any,
) -> SyntheticSet:
    """Distil a data set.

    Args:
        method: a method object, or its name at a ``budget`` ("quick", "standard", "paper").
        data: any source of :func:`potstill.load`, an :class:`ImageSet`, or a :class:`Data`.
        ipc: stored images per class.
        out: run folder; ``None`` keeps nothing on disk.
        imbalance_factor: cut the train split to a long tail first; 1 leaves it as it is.
        force: replace a finished run, or that of another job, in ``out``.
        label: name of the budget that a method object was made from, for the provenance.
        options: further fields of :class:`Data`.

    Returns:
        The synthetic set. A finished run of the same job is read, not repeated.

    Example:
        >>> syn = potstill.distill("csdm", "digits", ipc=10, imbalance_factor=50, out="runs/csdm")
    """
    run = run or Run()
    check_value("ipc", ipc, Batch)
    if isinstance(method, str):
        method = find(method).budget(budget)
        chosen: str | None = budget
    else:
        chosen = label
    method.check()  # before data are decoded; _run checks again whether they fit
    twice = [*options, *(["imbalance_factor"] if imbalance_factor != 1 else [])]
    if (isinstance(data, ImageSet) and options) or (isinstance(data, Data) and twice):
        raise InputError(
            f"{twice[0]} is given beside data that are a {type(data).__name__} already; "
            "choose it there"
        )
    opened = _opened(data, run, imbalance_factor, options)
    return _run(method, opened, ipc, run, Path(out) if out else None, chosen, force)


class _Opened(NamedTuple):
    train: ImageSet
    described: dict[str, Any]  # for run.json
    note: str  # where the test images come from
    history: list[dict[str, Any]] | None  # how an ImageSet was cut, to repeat it


def _opened(data: Any, run: Run, imbalance_factor: float, options: dict[str, Any]) -> _Opened:
    """Open what :func:`distill` was given."""
    if isinstance(data, ImageSet):
        train = data if imbalance_factor == 1 else data.long_tailed(imbalance_factor)
        history = list(train.history)
        described = {"data": data.source, "in_memory": True} | fold_of(history)
        return _Opened(train, described, "", history)
    named = isinstance(data, (str, Path, Data))
    if isinstance(data, Data):
        asked = data
    else:
        name = str(data) if named else "arrays"
        asked = Data(data=name, imbalance_factor=imbalance_factor, **options)
    train, _, note = asked.open(run, None if named else data)
    return _Opened(train, asked.facts() | ({} if named else {"in_memory": True}), note, None)


def _run(
    method: Method,
    opened: _Opened,
    ipc: int,
    run: Run,
    folder: Path | None,
    budget: str | None,
    force: bool,
) -> SyntheticSet:
    train, described, note, history = opened
    _sensible(train, ipc)
    method.check(train)
    if folder is None:
        return method(train, ipc, run)
    job: dict[str, Any] = {
        "method": method.info.name,
        "fields": method.fields(),
        "budget": budget,
        "ipc": ipc,
        "seed": run.seed,
        "data": described,
        "train_checksum": train.checksum,
        "test_note": note,
    }
    if history is not None:
        job["history"] = history
    # run.json used to name a profile for sets that are not cut, too: such runs keep their key
    named = {"profile": "exponential"} if "imbalance_factor" in described else {}
    key = digest([method.key(train, ipc, run), named | described])
    with claimed(folder, key, force) as finished:
        if finished:
            logger.warning(
                "%s is already finished with this very job; nothing to do (--force runs it again)",
                folder,
            )
            return SyntheticSet.load(folder / "synthetic")
        record = {"status": "running", "job": job, "key": key, "started": _now()}
        write_json(folder / "run.json", record)
        picture_real(folder, train, ipc)
        steps = int(method.fields().get("steps", 0))
        gallery = Gallery(folder, train.classes, steps, run.watch)
        syn = method(train, ipc, run.with_(folder=folder, watch=gallery))
        syn.provenance.update(
            {"budget": budget, "test_note": note, "data_options": _travelling(described, train)}
        )
        syn.save(folder / "synthetic")
        done = {"status": "finished", "finished": _now(), "seconds": syn.provenance["seconds"]}
        write_json(folder / "run.json", record | done | {"artifact": syn.checksum})
    return syn


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _travelling(described: dict[str, Any], train: ImageSet) -> dict[str, Any]:
    """Options as they stand in an artifact, which others get: without this machine's paths."""
    test = described.get("test")
    shown = Path(test).name if test and Path(test).exists() else test
    return described | {"data": train.source} | ({"test": shown} if test else {})


def _sensible(train: ImageSet, ipc: int) -> None:
    most = max(1, (len(train) - 1) // train.num_classes)
    if not 1 <= ipc <= most:
        raise InputError(
            f"ipc is {ipc} for {len(train)} real images in {train.num_classes} classes; use 1 to "
            f"{most}, so that the synthetic set is smaller than the real one"
        )
