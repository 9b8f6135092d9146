"""Recipes: one TOML file per table cell, with what was published and what was measured here.

    [about]    title, paper's score and protocol, notes
    [data]     fields of potstill.Data
    [distill]  method, ipc, budget, seed
    [method]   hyper-parameters that differ from the budget's
    [evaluate] network, protocol, runs
    [[measured]]  date, device, seconds, accuracy, std, head, medium, tail (one table per run)

Running a recipe again resumes an unfinished run and skips finished parts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from potstill.job import Data, distill, evaluate_run
from potstill.methods import find
from potstill.run import InputError, Run, nearest

__all__ = ["read_recipe", "run_recipe"]

_TABLES: dict[str, set[str] | None] = {
    "about": {"title", "paper", "paper_accuracy", "paper_protocol", "note"},
    "data": {f.name for f in fields(Data)},
    "distill": {"method", "ipc", "budget", "seed"},
    "method": None,  # checked by the method itself
    "evaluate": {"network", "protocol", "runs", "full"},
    "measured": None,
}


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the tables of a recipe, checked for unknown names.

    Raises:
        InputError: the file is missing, is not TOML or holds a table or key that nothing reads.
    """
    if not path.is_file():
        raise InputError(
            f"file is {path}, which does not exist; give a recipe such as "
            "recipes/csdm/digits-lt50-ipc10.toml"
        )
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    for name, table in recipe.items():
        if name not in _TABLES:
            raise InputError(f"{path} has a table [{name}]{nearest(name, _TABLES)}")
        known = _TABLES[name]
        for key in table if known is not None else ():
            if known is not None and key not in known:
                raise InputError(f"{path} has {key!r} in [{name}]{nearest(key, known)}")
    if "method" not in recipe.get("distill", {}):
        raise InputError(f'{path} names no method; add method = "csdm" to [distill]')
    return recipe


def method_of(recipe: dict[str, Any]) -> Any:
    """Build the method object that a recipe describes."""
    about = recipe["distill"]
    return find(about["method"]).budget(about.get("budget", "quick"), **recipe.get("method", {}))


def run_recipe(
    path: Path,
    make_run: Callable[[int], Run],
    *,
    out: Path | None = None,
    data: str | None = None,
    seed: int | None = None,
    force: bool = False,
) -> tuple[Path, list[Any]]:
    """Distil, evaluate and report; return the run folder and the score records."""
    from potstill.reports import report

    recipe = read_recipe(path)
    about = recipe["distill"]
    run = make_run(about.get("seed", 0) if seed is None else seed)
    chosen = Data(**recipe.get("data", {}) | ({"data": data} if data else {}))
    folder = out or Path("runs") / path.stem
    distill(
        method_of(recipe),
        chosen,
        ipc=about.get("ipc", 10),
        out=folder,
        run=run,
        force=force,
        label=about.get("budget", "quick"),
    )
    options = recipe.get("evaluate", {})
    records = evaluate_run(
        folder,
        run.with_(seed=0),
        network=options.get("network", ["convnet-w128-in"]),
        protocol=options.get("protocol", "default"),
        runs=options.get("runs", 5),
        full=options.get("full", False),
    )
    report(folder, None)
    return folder, records
