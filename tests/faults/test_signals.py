"""Signals at random moments: the exit code of the signal, a sentence, and the same bytes after.

SIGTERM, SIGHUP and Ctrl-C end politely; SIGKILL cannot be answered. Whatever was sent, and as often
as it was sent, the same command ends with what it would have given undisturbed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import ground
from cases import Case, Ended, Fault, draw_for, finish, in_child, start, trials
from trial import Trial

CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
LONGER = ("csdm", "lad", "lgm", "backbone", "evaluate", "force", "recipe")


class Interrupted(Trial):
    """A job to which signals are sent until it has ended by itself."""

    def _prepare(self) -> None:
        super()._prepare()
        began = time.monotonic()
        with self._fresh():
            in_child(lambda: self.job.action(self.place), self.said)
        self.duration = time.monotonic() - began

    def interrupt(self, number: int, moments: list[tuple[float, signal.Signals]]) -> Case:
        shown = ", ".join(f"{sent.name} at {part:.2f}" for part, sent in moments)
        return Case(number, f"{self.name}: {shown}", lambda: self.judge_signals(moments), 120, 500)

    def judge_signals(self, moments: list[tuple[float, signal.Signals]]) -> str:
        late = 0
        with self._fresh():
            for part, sent in moments:
                before = self.left()  # of an earlier SIGKILL
                ended = self._sent(part * self.duration, sent)
                if ended.code == 0:
                    late += 1
                    continue
                self._polite(ended, sent, before)
                self.between(sent.name)
            self.again("cache" if signal.SIGKILL in [sent for _, sent in moments] else "")
        kinds = "+".join(sorted({sent.name for _, sent in moments}))
        return f"{self.name}: {kinds}" + (" (too late)" if late == len(moments) else "")

    def _sent(self, wait: float, sent: signal.Signals) -> Ended:
        def action() -> int:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job ignores it
            (self.root / "begun").touch()
            return self.job.action(self.place)

        (self.root / "begun").unlink(missing_ok=True)
        child = start(action, self.said)
        while not (self.root / "begun").exists():
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(child, sent)
        return finish(child, self.said)

    def _polite(self, ended: Ended, sent: signal.Signals, before: list[str]) -> None:
        if sent != signal.SIGKILL and ended.code == -sent:
            return  # before the command had begun to listen
        if ended.code != CODES[sent]:
            raise Fault(f"{sent.name} gives {ended.code}: {ended.said[-500:]!r}")
        if sent == signal.SIGKILL:
            return
        lines = ended.said.splitlines()
        if not lines or not lines[-1].startswith("potstill: ") or "same command" not in lines[-1]:
            raise Fault(f"{sent.name} is answered by {lines[-2:]}")
        if "Traceback" in ended.said:
            raise Fault(f"{sent.name} gives a traceback: {ended.said[-500:]!r}")
        if left := sorted({*self.left()} - {*before}):
            raise Fault(f"{sent.name} leaves {left}")


def cases(root: Path, seed: int, numbers: range, jobs: tuple[str, ...] = LONGER) -> Iterator[Case]:
    ready: dict[str, Interrupted] = {}
    for number in numbers:
        draw = draw_for("signals", seed, number)
        name = jobs[number % len(jobs)]
        trial = ready[name] if name in ready else ready.setdefault(name, Interrupted(root, name))
        count = draw.choice((1, 1, 2, 3))
        moments = [(draw.random(), draw.choice(sorted(CODES))) for _ in range(count)]
        yield trial.interrupt(number, moments)


def test_signals_at_random_moments(tmp_path):
    ground.warm()
    tally = trials(cases(tmp_path, 0, range(3), ("csdm", "evaluate")))
    assert not tally.failures, "\n".join(tally.failures)
