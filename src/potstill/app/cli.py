"""The command line: ``potstill distill | evaluate | report | compare | crossval | recipe | ...``.

Every field of a method is a flag, with its help taken from the dataclass. Strings become objects
here and nowhere else. Exit codes: 0 success, 2 bad input, 3 diverged, 4 storage, 130 interrupted,
143 and 129 ended by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

# Spinning OpenMP threads ruin a shared machine; this must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What `datasets` would say about a damaged file stands in our own sentence.
os.environ.setdefault("DATASETS_VERBOSITY", "critical")

import tyro

from potstill.app import entry
from potstill.app.flags import FLAT, Machine, Taught, parse, parse_method
from potstill.app.suiting import default_student, suiting
from potstill.data.longtail import Factor
from potstill.data.reading import Side
from potstill.losses import priors, told
from potstill.run.errors import InputError, PotstillError, nearest, system_refusals
from potstill.run.fields import Batch, OneOf, Runs, Seed
from potstill.run.signals import ENDED, Terminated, ending_signals

__all__ = ["main"]


@dataclass(kw_only=True)
class Distill:
    """What every method needs besides its own fields."""

    out: Path  # run folder; a killed run resumes there
    ipc: Batch = 10  # stored images per class
    seed: Seed = 0  # every random draw descends from it
    force: bool = False  # replace a finished or foreign run in --out
    # send losses to tensorboard, wandb or trackio as well, whichever is installed
    track: Annotated[str | None, OneOf("tensorboard", "wandb", "trackio", None)] = None


def _distill(words: list[str]) -> None:
    from potstill.methods import CATALOGUE

    if not words or words[0] in ("-h", "--help"):
        names = "\n".join(f"  {n:8s} {m.info.title}" for n, m in CATALOGUE.items())
        print(
            f"usage: potstill distill METHOD [flags]\n\nmethods:\n{names}\n\n"
            "potstill distill METHOD --help lists its flags."
        )
        return
    from potstill.app.job import distill
    from potstill.run.trackers import tracker

    with parse_method(words, "distill", Distill) as (chosen, method):
        job = chosen.job
        own = {"ipc": job.ipc, "out": job.out, "force": job.force, "label": chosen.budget}
        run = chosen.machine.run(job.seed)
        run = run.with_(watch=tracker(job.track, job.out)) if job.track else run
        syn = distill(method, chosen.data, run=run, **own)
        if not chosen.machine.quiet:
            seconds = syn.provenance.get("seconds", 0.0)
            print(f"{len(syn.images)} images in {seconds:.0f} s -> {job.out}/synthetic")
            learned, backbone = syn.syn_lr is not None, "backbone" in syn.provenance
            network, protocol = default_student(learned, backbone)
            print(
                f"next: potstill evaluate {job.out} --network {network} --protocol {protocol} "
                f"&& potstill report {job.out}"
            )


@dataclass(kw_only=True)
class Evaluate:
    """Train students on a synthetic set; score them on the test split beside a random subset."""

    folder: tyro.conf.Positional[Path]  # run folder
    # student networks; with a probe protocol backbones ("same": the one that distilled)
    network: list[str] | None = None
    # quick, default, dc, dsa, mtt, lad, idc, ncfm, probe (and *-published); default: quick without
    # a GPU, probe for what a backbone distilled, lad for learned step sizes
    protocol: str | None = None
    runs: Runs = 5  # students per network
    seed: Seed = 0  # of the students
    # score random real images too: as many, and for tiled sets as many as their storage holds
    baseline: bool = True
    quantized: bool = True  # score the 8-bit view too
    full: bool = False  # score training on the full (long-tailed) set too
    prior: Annotated[str | None, OneOf(*priors(), None), tyro.conf.arg(help=told(priors()))] = None
    taught: Annotated[Taught, FLAT] = field(default_factory=Taught)
    inherit: Literal["none", "ridge", "adam"] = "none"  # probe: score the sender's classifier too
    # what is done about uneven classes in it: a --prior that mixes nothing; default logit_adjusted
    head_prior: str | None = None
    kd: bool = False  # probe: score heads that learn from that classifier, too
    sender: str | None = None  # the backbone that distilled, if it has moved since
    data: str | None = None  # source to test on, if not the one in run.json
    test: str | None = None  # source of the test split, if not the one in run.json
    # of an artifact without run.json: how its --data are read
    image_size: Side | None = None
    imbalance_factor: Factor = 1.0  # n_max / n_min that its train split was cut to
    machine: Annotated[Machine, FLAT] = field(default_factory=Machine)


_PASSED_ON = (
    *("runs", "baseline", "quantized", "full", "sender"),
    *("data", "test", "image_size", "imbalance_factor"),
)


def _evaluate(words: list[str]) -> None:
    from potstill.app.scoring import evaluate_run
    from potstill.evaluation import find_protocol, inheritance
    from potstill.reports.remarks import printed

    with parse(Evaluate, words, "evaluate") as chosen:
        network, protocol = suiting(chosen.folder, chosen.network, chosen.protocol)
        records = evaluate_run(
            chosen.folder,
            chosen.machine.run(chosen.seed),
            network=network,
            protocol=find_protocol(protocol, chosen.prior, **vars(chosen.taught)),
            inherit=inheritance(chosen.inherit, chosen.head_prior, chosen.kd),
            **{key: getattr(chosen, key) for key in _PASSED_ON},
        )
        print(printed(records))


@dataclass(kw_only=True)
class Report:
    """Write the HTML page of a run."""

    folder: tyro.conf.Positional[Path]  # run folder
    out: Path | None = None  # page; default report.html in the folder


def _report(words: list[str]) -> None:
    from potstill.reports import report

    with parse(Report, words, "report") as chosen:
        print(report(chosen.folder, chosen.out))


@dataclass(kw_only=True)
class Compare:
    """Write one HTML page that sets the scores of several runs side by side."""

    # two or more run folders, evaluated; the first is the reference
    folders: tyro.conf.Positional[list[Path]]
    out: Path  # page


def _compare(words: list[str]) -> None:
    from potstill.reports import compare

    with parse(Compare, words, "compare") as chosen:
        if len(chosen.folders) < 2:
            given = f"only {chosen.folders[0]}" if chosen.folders else "no run"
            raise InputError(f"there is {given} to compare; give two or more run folders")
        print(compare(chosen.folders, chosen.out))


def _methods(words: list[str]) -> None:
    from potstill.methods import CATALOGUE
    from potstill.reports.table_text import fitted, plain

    if words[:1] in (["-h"], ["--help"]):
        print("usage: potstill methods [--wide]\n\n--wide adds paper, labels and cost.")
        return
    if words and words != ["--wide"]:
        raise InputError(f"potstill methods is followed by {words[0]!r}; it takes --wide alone")
    shown: tuple[str, ...] = ("name", "title", "year", "long_tail")
    if words:
        shown = ("name", "title", "paper", "year", "family", "labels", "long_tail", "cost")
    rows = [
        {("method" if key == "title" else key): getattr(m.info, key) or "" for key in shown}
        for m in CATALOGUE.values()
    ]
    print(plain(rows) if words else fitted(rows))


@dataclass(kw_only=True)
class Recipe:
    """Distil, evaluate and report exactly as a recipe says."""

    file: tyro.conf.Positional[Path]  # recipes/METHOD/NAME.toml
    out: Path | None = None  # run folder; default runs/NAME
    data: str | None = None  # where the data are, if not at the path that the recipe names
    seed: Seed | None = None  # instead of the recipe's
    force: bool = False  # replace a finished or foreign run in --out
    machine: Annotated[Machine, FLAT] = field(default_factory=Machine)


def _recipe(words: list[str]) -> None:
    from potstill.app.recipe import run_recipe
    from potstill.reports.remarks import printed

    with parse(Recipe, words, "recipe") as chosen:
        folder, records = run_recipe(
            chosen.file,
            chosen.machine.run,
            out=chosen.out,
            data=chosen.data,
            seed=chosen.seed,
            force=chosen.force,
        )
        print(printed(records))
        print(folder / "report.html")


def _command_of(module: str) -> Callable[[list[str]], None]:
    """A command in a module of its own, imported when it is wanted."""

    def run(words: list[str]) -> None:
        said = importlib.import_module(f"potstill.app.{module}").command(words)
        for line in [said] if isinstance(said, str) else said:
            print(line)

    return run


COMMANDS = {
    "distill": _distill,
    "evaluate": _evaluate,
    "import": _command_of("import_command"),
    "relabel": _command_of("relabel_command"),
    "report": _report,
    "compare": _compare,
    "methods": _methods,
    "backbone": _command_of("backbone_command"),
    "cache": _command_of("cache_command"),
    "completion": _command_of("completion_command"),
    "crossval": _command_of("crossval"),
    "recipe": _recipe,
    "push": _command_of("push_command"),
}


def _dispatch(words: list[str]) -> None:
    if words[0] not in COMMANDS:
        raise InputError(f"command is {words[0]!r}{nearest(words[0], COMMANDS)}")
    level = logging.WARNING if "--quiet" in words else logging.INFO
    handler = logging.StreamHandler()
    handler.addFilter(logging.Filter("potstill"))  # other libraries speak for themselves
    logging.basicConfig(format="potstill: %(message)s", handlers=[handler])
    logging.getLogger("potstill").setLevel(level)
    COMMANDS[words[0]](words[1:])


def main(words: list[str] | None = None) -> int:
    """Run one command; return the exit code. What needs no torch stands in ``entry``."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0].startswith("-") or words[0] == "help":
        return entry.main(words)
    try:
        code = _guarded(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _guarded(words: list[str]) -> int:
    """Run one command; errors that a user can act on become a sentence and an exit code."""
    try:
        with ending_signals(), system_refusals():
            _dispatch(words)
        return 0
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return error.exit_code
    except ENDED as end:
        goes_on = words[:1] and words[0] in ("distill", "crossval", "recipe", "backbone")
        print(
            f"potstill: {'ended' if isinstance(end, Terminated) else 'interrupted'}; "
            f"the same command {'goes on where this one was' if goes_on else 'begins again'}",
            file=sys.stderr,
        )
        return end.code if isinstance(end, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
