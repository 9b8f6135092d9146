"""Flags: the words of a command become objects, with defaults that suit the machine."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Container
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from potstill.run.errors import InputError, nearest

__all__ = [
    "FLAT",
    "Machine",
    "data_flags",
    "default_budget",
    "default_student",
    "parse",
    "suiting",
]

FLAT = tyro.conf.arg(name="")  # fields of a nested dataclass are flags like any other


@dataclass(kw_only=True)
class Machine:
    """Where to run."""

    device: str = "auto"  # "auto" (first CUDA device, else CPU), "cpu", "cuda", "cuda:1"
    precision: str = "auto"  # frozen network passes: "fp32" or "bf16"; auto = bf16 on CUDA only
    compile: bool = False  # torch.compile the feature networks
    memory_gb: float = 4.0  # budget of one step's activations and of images kept in memory
    checkpoint_seconds: float = 20.0  # at most this much work is lost by a kill; 0 = every step
    threads: int = 0  # CPU threads; 0 = torch's choice
    quiet: bool = False  # no progress bars, warnings only

    def run(self, seed: int) -> Any:
        """Return the Run these flags describe."""
        import torch

        from potstill.run import Run
        from potstill.run.machine import tune_allocator

        tune_allocator()
        if self.threads < 0:
            raise InputError(f"threads is {self.threads}; use 0 (torch's choice) or more")
        if self.threads:
            torch.set_num_threads(self.threads)
        return Run(
            seed=seed,
            device=self.device,
            precision=self.precision,
            compile=self.compile,
            memory_gb=self.memory_gb,
            checkpoint_seconds=self.checkpoint_seconds,
            quiet=self.quiet,
        )


def parse(kind: Any, words: list[str], command: str) -> Any:
    """Read flags; what tyro finds wrong becomes one sentence."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=words, prog=f"potstill {command}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_sentence(box.getvalue(), command)) from None


def _sentence(box: str, command: str) -> str:
    """The message inside tyro's frame and the option it suggests, without the frame."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text and set(text) <= {"─", "-"}:
            parts.append([])
        elif text and text[0] not in "╭╰":
            parts[-1].append(text)
    titled = not box.startswith("╭")  # without Unicode the title stands above a rule of its own
    message = " ".join(parts[min(titled, len(parts) - 1)]).rstrip(".").replace(". ", "; ")
    similar = re.search(r"--\w[\w-]*", box.partition("Perhaps you meant")[2])
    if similar:
        return f"{message}; did you mean {similar[0]!r}?"
    return f"{message}; potstill {command} --help explains the flags"


def default_budget(words: list[str]) -> str:
    """Budget named on the command line; otherwise what suits the device."""
    from potstill.methods import BUDGETS

    for index, word in enumerate(words):
        name = word.partition("=")[2] if word.startswith("--budget=") else None
        if word == "--budget" and index + 1 < len(words):
            name = words[index + 1]
        if name is not None:
            if name not in BUDGETS:
                raise InputError(f"--budget is {name!r}{nearest(name, BUDGETS)}")
            return name
    import torch

    return "standard" if torch.cuda.is_available() else "quick"


def default_student(learned_lr: bool = False, backbone: bool = False) -> tuple[str, str]:
    """Network and protocol that suit the machine and the set.

    Sets with a learned student step size and those that a backbone distilled have their own.
    """
    import torch

    if backbone:
        return "same", "probe"
    gpu = torch.cuda.is_available()
    fitting = {True: ("lad-quick", "lad"), False: ("quick", "default")}
    return ("convnet-w128-in" if gpu else "convnet-w32-in"), fitting[learned_lr][gpu]


def suiting(
    folder: Path, networks: list[str] | None, protocol: str | None
) -> tuple[list[str], str]:
    """Complete what was not said about an evaluation by what suits the set in ``folder``."""
    if networks is not None and protocol is not None:
        return networks, protocol
    from potstill.evaluation import Probe, find_protocol
    from potstill.synthetic import SyntheticSet

    learned = backbone = False
    with contextlib.suppress(InputError):  # evaluation says what is wrong with the folder
        syn = SyntheticSet.load(folder)
        learned, backbone = syn.syn_lr is not None, "backbone" in syn.provenance
    if protocol is not None:
        backbone = isinstance(find_protocol(protocol), Probe)
    network, suits = default_student(learned, backbone)
    return [network] if networks is None else networks, protocol or suits


def data_flags(taken: Container[str]) -> Any:
    """Return Data with ``--label-column`` for its labels, ``--labels`` too unless that is taken."""
    from potstill.job import Data

    column = tyro.conf.arg(
        name="label-column",
        aliases=None if "labels" in taken else ("--labels",),
        help="label column, for tables with several",
    )
    fields = [("labels", Annotated[str | None, column], field(default=None))]
    flags = make_dataclass("Data", fields, bases=(Data,), frozen=True, kw_only=True)
    flags.__module__ = Data.__module__  # where the comments stand that explain the other fields
    return flags
