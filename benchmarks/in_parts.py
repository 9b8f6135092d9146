"""A long measurement in parts: each a process with a time limit and a small JSON file of its own.

A part that hangs, fails or runs out of time costs its share and nothing more. A part that has
finished under the same words is not run again by a later call with the same folder; every other
part is. A part's process prints lines of JSON, which become ``found``; the last ``figure`` among
them, else the first ``ratio``, stands in the table. Exit code 0 is "finished", or "skipped" if a
line has ``skipped`` with a sentence.

Only the standard library is imported, so that a broken installation is a failed part, too.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["Part", "Record", "run_parts", "sole_user", "standing", "table", "write_json"]

LEAST = 5.0  # seconds of which a part can make anything; with less left, none is begun
GRACE = 10.0  # seconds between the polite end of a part and the other one
_LIBC = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
_TAIL, _LINES = 1500, 12  # characters and lines of an error
_MUCH = 1 << 20  # bytes that are read of an output
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process.

    ``words`` follow the interpreter and say everything that moves the result. ``share``: of the
    time that is left when it begins, above 0, at most 1; it is given ``least`` seconds where that
    is more and there are as many. ``refusal``: why it cannot run here, in a sentence; "" if it can.
    ``settings``: what else its JSON should state.
    """

    name: str
    words: tuple[str, ...]
    share: float
    least: float = 20.0
    refusal: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        """Where its JSON lies."""
        return folder / f"{self.name}.json"


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def earlier(part: Part, folder: Path) -> Record:
    """What an earlier call has left of this very part; {} if nothing, or if it cannot be read."""
    with suppress(OSError, ValueError):
        record = json.loads(part.path(folder).read_text(encoding="utf-8"))
        if isinstance(record, dict) and record.get("words") == list(part.words):
            ended = record.get("state") == "running"  # its call was ended without a word
            return record | ({"state": "stopped"} if ended else {})
    return {}


def _blank(part: Part) -> Record:
    return {
        "part": part.name, "state": "waiting", "seconds": 0.0, "figure": "", "error": "",
        "words": list(part.words), "settings": dict(part.settings), "found": [],
    }  # fmt: skip


def standing(parts: Sequence[Part], folder: Path) -> list[Record]:
    """How each part stands by its JSON; "waiting" without one."""
    return [earlier(part, folder) or _blank(part) for part in parts]


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    minutes: float,
    environment: Mapping[str, str] | None = None,
    start: float = 0.0,
) -> Iterator[Record]:
    """Run what is not finished, in order, within ``minutes`` in all; yield a record for each.

    ``environment``: added to this process's own. ``start``: seconds that each part is given beyond
    its limit and beyond ``minutes``. ``seconds`` of a record are those of all calls.
    """
    end = time.monotonic() + 60 * minutes
    for part in parts:
        before, left = earlier(part, folder), end - time.monotonic()
        record = _blank(part)
        if before.get("state") == "finished":
            yield before
            continue
        if part.refusal:
            record |= {"state": "skipped", "error": part.refusal}
        elif left < LEAST:
            record |= before if before.get("seconds") else {"state": "no time"}
        else:
            limit = min(left, max(part.least, part.share * left)) + start
            end += start
            record |= {"limit_s": round(limit, 1), "state": "running"}
            record["seconds"] = before.get("seconds", 0.0)
            write_json(part.path(folder), record)
            _run(part, record, limit, {**os.environ, **(environment or {})}, folder)
        write_json(part.path(folder), record)
        yield record


def _run(
    part: Part, record: Record, limit: float, environment: dict[str, str], folder: Path
) -> None:
    """Run one process; fill its record, also when this one is asked to end meanwhile."""
    began, earlier_s = time.monotonic(), record["seconds"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # a group of its own, so that its children end with it; not a session: who ends the whole
        # session (a scheduler, a closed terminal) means them, too
        child = subprocess.Popen(
            [sys.executable, *part.words], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            env=environment, process_group=0, preexec_fn=_ends_with_this_process,
        )  # fmt: skip
        record["state"] = "stopped"
        try:
            code = child.wait(limit)
            record["state"] = "failed" if code else "finished"
        except subprocess.TimeoutExpired:
            record["error"] = f"ran out of its {limit:.0f} s"
        finally:
            _end(child)
            record["seconds"] = round(earlier_s + time.monotonic() - began, 2)
            _read(record, out, err)
            write_json(part.path(folder), record)


def _ends_with_this_process() -> None:
    """Linux: a part does not outlive a call that was killed (PR_SET_PDEATHSIG)."""
    if _LIBC is not None:
        _LIBC.prctl(1, int(signal.SIGTERM))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children: politely, so that it keeps what it has, then firmly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        running = child.poll() is None
        with suppress(ProcessLookupError, PermissionError):
            if running or number == signal.SIGKILL:  # children may have outlived it
                os.killpg(child.pid, number)
        if running:
            with suppress(subprocess.TimeoutExpired):  # not even SIGKILL ends one inside a driver
                child.wait(GRACE)


def _tail_of(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _MUCH))
    return stream.read().decode("utf-8", "replace")


def _read(record: Record, out: IO[bytes], err: IO[bytes]) -> None:
    """Take facts, figure and error from what a process has printed."""
    printed = _tail_of(out)
    for line in printed.splitlines():
        with suppress(ValueError):
            fact = json.loads(line)
            if isinstance(fact, dict):
                record["found"].append(fact)
    for fact in [fact for fact in record["found"] if "ratio" in fact][:1]:
        spread = f" ({fact['ratio_min']} to {fact['ratio_max']})" if "ratio_min" in fact else ""
        record["figure"] = f"{fact['ratio']} x{spread}"
    for fact in record["found"]:
        record["figure"] = str(fact.get("figure", record["figure"]))
        if "skipped" in fact and record["state"] == "finished":
            record |= {"state": "skipped", "error": str(fact["skipped"])}
    if record["state"] in ("failed", "stopped"):
        lines = [line for line in (_tail_of(err).strip() or printed.strip()).splitlines() if line]
        said = "\n".join([*lines[-_LINES:], *filter(None, [record["error"]])])
        record["error"] = said[-_TAIL:]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """One line for each part: its state, seconds and main figure, or what went wrong."""
    rows = [("part", "state", "seconds", "figure")]
    for record in records:
        wrong = record["error"].splitlines()[-1:] if record["state"] != "finished" else []
        said = "; ".join(filter(None, [record["figure"], *wrong]))
        rows.append((record["part"], record["state"], f"{record['seconds']:.0f}", said[:160]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {state:<{widths[1]}}  {seconds:>{widths[2]}}  {said}".rstrip()
        for name, state, seconds, said in rows
    )


@contextmanager
def sole_user(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made, for one process; ``wait`` until another one has left it.

    Raises:
        BlockingIOError: another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
