"""The command line: ``potstill distill | evaluate | report | methods | recipe``.

Every field of a method is a flag, with its help taken from the dataclass. Strings become objects
here and nowhere else. Exit codes: 0 success, 2 bad input, 3 diverged, 4 storage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

# Spinning OpenMP threads ruin a shared machine; this must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What `datasets` would say about a damaged file stands in our own sentence.
os.environ.setdefault("DATASETS_VERBOSITY", "critical")

import tyro

from potstill import __version__
from potstill.run.errors import DivergedError, InputError, PotstillError, StorageError, nearest

__all__ = ["main"]

_FLAT = tyro.conf.arg(name="")

USAGE = """potstill {version}: distil a long-tailed image set into a small balanced one

  potstill distill METHOD --data SOURCE --ipc N --out DIR    make a synthetic set
  potstill evaluate DIR --network NAME [NAME ...]            train students on it and score them
  potstill report DIR                                        write its HTML page
  potstill methods                                           what can be chosen as METHOD
  potstill recipe FILE.toml                                  distil, evaluate and report as written

Each command explains its flags with --help, e.g. potstill distill csdm --help.
"""


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


def _parse(kind: Any, words: list[str], command: str) -> Any:
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


def _default_budget(words: list[str]) -> str:
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


@dataclass(kw_only=True)
class Distill:
    """What every method needs besides its own fields."""

    out: Path  # run folder; a killed run resumes there
    ipc: int = 10  # stored images per class
    seed: int = 0  # every random draw descends from it
    force: bool = False  # replace a finished or foreign run in --out


def _distill(words: list[str]) -> None:
    from potstill.methods import CATALOGUE, find

    if not words or words[0] in ("-h", "--help"):
        names = "\n".join(f"  {n:8s} {m.info.title}" for n, m in CATALOGUE.items())
        print(
            f"usage: potstill distill METHOD [flags]\n\nmethods:\n{names}\n\n"
            "potstill distill METHOD --help lists its flags."
        )
        return
    from potstill.job import Data, distill

    method_class = find(words[0])
    budget = _default_budget(words)
    options = make_dataclass(
        "Options",
        [
            ("job", Annotated[Distill, _FLAT]),
            (
                "budget",
                Annotated[
                    str, tyro.conf.arg(help="size of the defaults: quick, standard or paper")
                ],
                field(default=budget),
            ),
            ("data", Annotated[Data, _FLAT], field(default_factory=Data)),
            ("machine", Annotated[Machine, _FLAT], field(default_factory=Machine)),
            (
                "method",
                Annotated[method_class, _FLAT],
                field(default_factory=lambda: method_class.budget(budget)),
            ),
        ],
        kw_only=True,
    )
    options.__doc__ = (
        f"{method_class.info.title} ({method_class.info.paper}). Defaults shown are those of the "
        f"{budget} budget."
    )
    chosen = _parse(options, words[1:], f"distill {words[0]}")
    job = chosen.job
    syn = distill(
        chosen.method,
        chosen.data,
        ipc=job.ipc,
        out=job.out,
        run=chosen.machine.run(job.seed),
        force=job.force,
        label=chosen.budget,
    )
    if not chosen.machine.quiet:
        seconds = syn.provenance.get("seconds", 0.0)
        print(f"{len(syn.images)} images in {seconds:.0f} s -> {job.out}/synthetic")
        network, protocol = _default_student()
        print(
            f"next: potstill evaluate {job.out} --network {network} --protocol {protocol} "
            f"&& potstill report {job.out}"
        )


def _default_student() -> tuple[str, str]:
    """Network and protocol that suit the machine."""
    import torch

    gpu = torch.cuda.is_available()
    return ("convnet-w128-in", "default") if gpu else ("convnet-w32-in", "quick")


@dataclass(kw_only=True)
class Evaluate:
    """Train students on a synthetic set; score them on the test split beside a random subset."""

    folder: tyro.conf.Positional[Path]  # run folder
    # student networks; default: convnet-w32-in without a GPU, convnet-w128-in with one
    network: list[str] = field(default_factory=lambda: [_default_student()[0]])
    # quick, default, dc, dsa, idc, ncfm (and *-published); default: quick without a GPU
    protocol: str = field(default_factory=lambda: _default_student()[1])
    runs: int = 5  # students per network
    seed: int = 0  # of the students
    baseline: bool = True  # score the random subset of the same size too
    quantized: bool = True  # score the 8-bit view too
    full: bool = False  # score training on the full (long-tailed) set too
    data: str | None = None  # source to test on, if not the one in run.json
    machine: Annotated[Machine, _FLAT] = field(default_factory=Machine)


def _evaluate(words: list[str]) -> None:
    from potstill.job import evaluate_run
    from potstill.reports.tables import plain, score_table

    chosen = _parse(Evaluate, words, "evaluate")
    records = evaluate_run(
        chosen.folder,
        chosen.machine.run(chosen.seed),
        network=chosen.network,
        protocol=chosen.protocol,
        runs=chosen.runs,
        baseline=chosen.baseline,
        quantized=chosen.quantized,
        full=chosen.full,
        data=chosen.data,
    )
    print(plain(score_table(records)))


@dataclass(kw_only=True)
class Report:
    """Write the HTML page of a run."""

    folder: tyro.conf.Positional[Path]  # run folder
    out: Path | None = None  # page; default report.html in the folder


def _report(words: list[str]) -> None:
    from potstill.reports import report

    chosen = _parse(Report, words, "report")
    print(report(chosen.folder, chosen.out))


def _methods(words: list[str]) -> None:
    from potstill.methods import CATALOGUE
    from potstill.reports.tables import plain

    if words and words[0] not in ("-h", "--help"):
        raise InputError(f"potstill methods is followed by {words[0]!r}; it takes no flags")
    rows = [
        {
            "name": m.info.name,
            "method": m.info.title,
            "paper": m.info.paper,
            "year": m.info.year or "",
            "family": m.info.family,
            "labels": m.info.labels,
            "long tail": m.info.long_tail,
            "cost": m.info.cost,
        }
        for m in CATALOGUE.values()
    ]
    print(plain(rows))


@dataclass(kw_only=True)
class Recipe:
    """Distil, evaluate and report exactly as a recipe says."""

    file: tyro.conf.Positional[Path]  # recipes/METHOD/NAME.toml
    out: Path | None = None  # run folder; default runs/NAME
    data: str | None = None  # where the data are, if not at the path that the recipe names
    seed: int | None = None  # instead of the recipe's
    force: bool = False  # replace a finished or foreign run in --out
    machine: Annotated[Machine, _FLAT] = field(default_factory=Machine)


def _recipe(words: list[str]) -> None:
    from potstill.recipe import run_recipe
    from potstill.reports.tables import plain, score_table

    chosen = _parse(Recipe, words, "recipe")
    folder, records = run_recipe(
        chosen.file,
        chosen.machine.run,
        out=chosen.out,
        data=chosen.data,
        seed=chosen.seed,
        force=chosen.force,
    )
    print(plain(score_table(records)))
    print(folder / "report.html")


COMMANDS = {
    "distill": _distill,
    "evaluate": _evaluate,
    "report": _report,
    "methods": _methods,
    "recipe": _recipe,
}


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(version=__version__))
        return
    if words[0] in ("-V", "--version"):
        print(__version__)
        return
    if words[0] not in COMMANDS:
        raise InputError(f"command is {words[0]!r}{nearest(words[0], COMMANDS)}")
    level = logging.WARNING if "--quiet" in words else logging.INFO
    handler = logging.StreamHandler()
    handler.addFilter(logging.Filter("potstill"))  # other libraries speak for themselves
    logging.basicConfig(format="potstill: %(message)s", handlers=[handler])
    logging.getLogger("potstill").setLevel(level)
    COMMANDS[words[0]](words[1:])


def main(words: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    try:
        code = _guarded(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _guarded(words: list[str]) -> int:
    """Run one command; errors that a user can act on become a sentence and an exit code."""
    try:
        _dispatch(words)
        return 0
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return (
            3 if isinstance(error, DivergedError) else 4 if isinstance(error, StorageError) else 2
        )
    except KeyboardInterrupt:
        print(
            "potstill: interrupted; the same command goes on where this one was",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
