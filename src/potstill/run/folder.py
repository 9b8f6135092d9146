"""The run folder: who may write into it, and whether the job it holds is finished."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.run.errors import ArtifactError, InputError, StorageError
from potstill.run.records import read_json
from potstill.run.replace import remove_owned
from potstill.run.resume import CHECKPOINTS

__all__ = ["claimed", "read_record", "refuse_unfinished"]

# What --force clears away first: files of ours, nothing that somebody put beside them. The artifact
# stays until the new one takes its place, and run.json until the new job is written over it, so a
# failure in between loses neither.
_DESCENT = (
    "|".join(map(re.escape, CHECKPOINTS)) + r"|metrics\.jsonl|iterates/(step-\d+\.safetensors)?"
    r"|shards/(shard-\d+\.safetensors)?"
)
_CLEARED = re.compile(
    rf"{_DESCENT}|stages/(\d+/({_DESCENT})?)?|scores\.json|head\.safetensors|report\.html"
    r"|pictures/((real|step-\d+)\.png)?"
)
_PART = re.compile(r"\.(.+?)(\.[a-z0-9_]{8})?\.part")  # what `atomic` calls an unfinished file


def read_record(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` of a run folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / "run.json"
    if not path.exists():
        raise InputError(
            f"folder is {folder} but holds no run.json; give the folder of a distillation run"
        )
    fix = "distil again with --force"
    record = read_json(path, fix)
    job = record.get("job")
    if not (isinstance(job, dict) and isinstance(job.get("data"), dict)):
        raise ArtifactError(f"{path} is damaged (it tells of no job); {fix}")
    if not isinstance(record.get("status"), str):
        raise ArtifactError(f"{path} is damaged (it has no status); {fix}")
    return record


def refuse_unfinished(record: dict[str, Any], folder: Path, artifact: str = "") -> None:
    """Refuse to take what lies in a run folder for the result of the run that it tells of.

    Args:
        record: ``run.json``. folder: for the sentence.
        artifact: checksum of the artifact there; "" looks at the record alone.

    Raises:
        InputError: the run is not finished, or made another artifact.
    """
    if record["status"] != "finished":
        raise InputError(
            f"{folder} holds an unfinished run; run the same command again to finish it"
        )
    made = record.get("artifact")
    if artifact and made not in (None, artifact):
        raise InputError(
            f"{folder} holds an artifact (checksum {artifact}) that its run did not make ({made}); "
            "distil again with --force, or evaluate a copy of the artifact's own folder"
        )


@contextmanager
def claimed(folder: Path, key: str, force: bool) -> Iterator[bool]:
    """Hold the folder for one process; yield whether exactly this job is already finished there.

    An unfinished run of this very job (equal ``key``) is resumed, with ``force`` too: it is what
    the same command, killed and started again, has to do.

    Raises:
        InputError: the folder holds other files, another job (without ``force``), or is in use.
        StorageError: it cannot be created.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except FileExistsError:
        raise InputError(f"out is {folder}, which is a file; choose a folder") from None
    except Timeout:
        raise InputError(
            f"out is {folder}, where another potstill process is at work; wait or choose another"
        ) from None
    except OSError as error:
        raise StorageError(
            f"cannot write into {folder}: {error.strerror}; choose another --out"
        ) from error
    try:
        yield _finished(folder, key, force)
    finally:
        lock.release()


def _refuse_foreign(folder: Path) -> None:
    """Only an empty folder becomes a run folder; hidden files do not count."""
    others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if others and "run.json" not in others:
        raise InputError(
            f"out is {folder}, which holds other files ({others[0]}); choose an empty folder"
        )


def _finished(folder: Path, key: str, force: bool) -> bool:
    _remove_parts(folder)
    if not (folder / "run.json").exists():
        return False
    try:
        record = read_record(folder)
    except InputError:
        if not force:
            raise
        record = {}
    same = record.get("key") == key
    complete = record.get("status") == "finished" and (folder / "synthetic").is_dir()
    if same and not (complete and force):
        return complete
    if not force:
        job = record["job"]
        raise InputError(
            f"out is {folder}, which holds a {record['status']} run of another job "
            f"({job.get('method')}, ipc {job.get('ipc')}); choose another --out or give --force"
        )
    remove_owned(folder, _CLEARED)
    return False


def _remove_parts(folder: Path) -> None:
    """Delete unfinished files of ours that a killed process could not take away."""
    stages = sorted((folder / "stages").glob("[0-9]*"))
    for place in (folder, *(folder / name for name in ("pictures", "iterates", "shards")), *stages):
        for path in place.glob(".*.part"):
            part = _PART.fullmatch(path.name)
            name = (path.parent / part[1]).relative_to(folder).as_posix() if part else ""
            if part and path.is_file() and (name == "run.json" or _CLEARED.fullmatch(name)):
                path.unlink()
