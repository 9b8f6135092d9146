"""Trials that may crash, hang or eat memory: each runs in a forked child, judged from outside.

A case returns the kind of its outcome in a word or two; :class:`Fault`, any other exception, a
death, a hang, too many seconds or megabytes are failures. Cases are independent of each other:
number ``i`` under seed ``s`` is always the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

BATCH = 200  # cases of one child, which is left behind as soon as one goes wrong


class Fault(Exception):
    """What must not happen has happened; the text says what."""


@dataclass(frozen=True)
class Case:
    """``number`` and the seed give the same case again; ``what`` says what is done, for people."""

    number: int
    what: str
    run: Callable[[], str]
    seconds: float = 5.0  # of processor time
    megabytes: float = 200.0  # beyond what the process had before
    patience: float = 120.0  # seconds on the clock until it counts as hung


@dataclass
class Tally:
    """Outcomes by kind, and the failures with a way to see them again."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values()) + len(self.failures)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.outcomes.most_common())
        return f"{self.tried} cases: {kinds or 'none held'}; {len(self.failures)} failures"


def draw_for(room: str, seed: int, number: int) -> random.Random:
    """The draws of one case, whatever was tried before it."""
    return random.Random(f"{room}/{seed}/{number}")


def trials(
    cases: Iterable[Case],
    say: Callable[[str], None] = lambda text: None,
    until: float = float("inf"),
) -> Tally:
    """Run the cases in forked children, some per child; ``say`` is told of each failure.

    No case begins after ``until`` on the monotonic clock.
    """
    tally, waiting = Tally(), iter(cases)
    while batch := [case for _, case in zip(range(BATCH), waiting, strict=False)]:
        while batch:
            done = 0
            answers = _some(batch)
            for case, fault, outcome in answers:
                done += 1
                if fault:
                    tally.failures.append(f"case {case.number} ({case.what}): {fault}")
                    say(tally.failures[-1])
                else:
                    tally.outcomes[outcome] += 1
                if time.monotonic() > until:
                    answers.close()
                    return tally
            batch = batch[done:]
    return tally


def _some(batch: list[Case]) -> Generator[tuple[Case, str, str], None, None]:
    """Judge cases in one child until the last or the first failure."""
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        os.close(reading)
        _work(batch, writing)
    os.close(writing)
    ended = False
    try:
        with os.fdopen(reading, "rb", buffering=0) as answers:
            for case in batch:
                ready, _, _ = select.select([answers], [], [], case.patience)
                line = answers.readline() if ready else b""
                if not line:
                    ended = True
                    status = _ended(child)
                    hung = f"hung for {case.patience:.0f} s"
                    yield case, f"the process ended with status {status}" if ready else hung, ""
                    return
                answer = json.loads(line)
                yield case, answer["fault"], answer["outcome"]
                if answer["fault"]:
                    return
    finally:
        if not ended:
            _ended(child)


def _ended(child: int) -> int:
    """Status of a child, which is killed if it has not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _work(batch: list[Case], answers: int) -> None:
    logging.getLogger("potstill").addHandler(logging.NullHandler())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders of pictures write there by themselves
    for case in batch:
        _forget_peak()
        before, began = _peak(), time.process_time()
        fault = outcome = ""
        try:
            outcome = case.run()
        except Fault as error:
            fault = str(error)
        except BaseException:
            fault = " <- ".join(reversed(traceback.format_exc().strip().splitlines()[-5:]))
        spent, grown = time.process_time() - began, _peak() - before
        if not fault and spent > case.seconds:
            fault = f"{spent:.1f} s of processor time"
        if not fault and grown > case.megabytes:
            fault = f"{grown:.0f} MB more memory"
        os.write(answers, json.dumps({"fault": fault, "outcome": outcome}).encode() + b"\n")
        if fault:
            break
    os._exit(0)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Megabytes at the highest since the last :func:`_forget_peak`."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Ended(NamedTuple):
    """How a child ended: exit code (negative: by that signal), and what it wrote to stderr."""

    code: int
    said: str


def fork() -> int:
    """``os.fork`` without what is buffered for the outside being written twice."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def start(action: Callable[[], int], said: Path) -> int:
    """Run ``action`` in a forked child that writes its stderr to a file; return its process id."""
    child = fork()
    if child:
        return child
    code = 70
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        os.dup2(quiet, 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        _unhandled()
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def finish(child: int, said: Path, patience: float = 120.0) -> Ended:
    """Wait for a child of :func:`start`; one that hangs is killed, which is a Fault."""
    until = time.monotonic() + patience
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"))
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Fault(f"hung for {patience:.0f} s; said {said.read_text()[-300:]!r}")
        time.sleep(0.002)


def in_child(action: Callable[[], int], said: Path, patience: float = 120.0) -> Ended:
    """Run ``action`` in a forked child to its end."""
    return finish(start(action, said), said, patience)


def _unhandled() -> None:
    """Let the command line set up its own logging, to the stderr of now."""
    logging.getLogger().handlers.clear()


def cli(words: list[str]) -> Ended:
    """Run a command in this process; exceptions pass through, as they would reach a user."""
    from potstill.app.cli import main

    box = io.StringIO()
    _unhandled()
    with contextlib.redirect_stderr(box), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    return Ended(code, box.getvalue())


def judged(ended: Ended, codes: tuple[int, ...] = (0, 2, 4)) -> str:
    """The outcome of a command: ``ran`` or ``refused``; a Fault for anything else.

    A refusal is one sentence; every line before it, if any, is a warning of ours.
    """
    lines = ended.said.splitlines()
    if ended.code not in codes:
        raise Fault(f"exit code {ended.code}, said {' | '.join(lines[-3:])[-500:]!r}")
    strange = [line for line in lines if not line.startswith("potstill: ")]
    if strange:
        raise Fault(f"exit code {ended.code} with the line {strange[-1][:300]!r}")
    if ended.code and not lines:
        raise Fault(f"exit code {ended.code} without a word")
    if ended.code and len(lines[-1]) > 2000:
        raise Fault(f"a sentence of {len(lines[-1])} characters: {lines[-1][:200]!r}")
    return "refused" if ended.code else "ran"
