"""Recipes: one TOML file per table cell, with what was published and what was measured here.

    [about]    title, paper's score and protocol, notes, fingerprint of the training data
    [data]     fields of potstill.Data
    [distill]  method, ipc, budget, seed
    [method]   hyper-parameters that differ from the budget's
    [evaluate] network, protocol, runs
    [[measured]]  date, device, seconds, accuracy, std, head, medium, tail (one table per run)

Running a recipe again resumes an unfinished run and skips finished parts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.app.flags import Taught
from potstill.app.job import Data, distill
from potstill.app.scoring import check_networks, evaluated
from potstill.evaluation import find_protocol, inheritance
from potstill.methods import find
from potstill.reports import report
from potstill.run import InputError, Run, nearest
from potstill.run.fields import Batch, Runs, Seed, Students, check_value, fields_of
from potstill.run.parts import flat_hints, parts_of
from potstill.run.records import parse_toml, read_regular

__all__ = ["read_recipe", "run_recipe"]

_TABLES: dict[str, dict[str, Any] | None] = {  # keys and their types
    "about": {
        "title": str,
        "paper": str,
        "paper_accuracy": float,
        "paper_protocol": str,
        "note": str,
        "fingerprint": str,  # of the decoded training split
    },
    "data": fields_of(Data),
    "distill": {"method": str, "ipc": Batch, "budget": str, "seed": Seed},
    "method": None,  # the fields of the method
    "evaluate": {
        "network": str | list[str],
        "protocol": str | list[str],  # of several, scores under each
        "prior": str,  # what is done about uneven classes in what students learn from
        "labels": str,  # which of the stored ones, or a teacher's: see Protocol
        "loss": str,
        "temperature": float,
        "teacher": str,
        "teacher_prior": str,
        "runs": Runs,
        "full": bool | Students,
        "inherit": str,  # projector of an inherited classifier: "ridge" or "adam"
        "head_prior": str,  # how that classifier was debiased
        "kd": bool,
    },
    "measured": None,
}


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the tables of a recipe, checked for unknown names.

    Raises:
        InputError: the file is missing, is not TOML or holds a table or key that nothing reads.
    """
    if not path.exists():
        raise InputError(
            f"file is {path}, which does not exist; give a recipe such as "
            "recipes/csdm/digits-lt50-ipc10.toml"
        )
    try:
        recipe = parse_toml(read_regular(path, 1 << 20))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    for name, table in recipe.items():
        if name not in _TABLES:
            raise InputError(f"{path} has a table [{name}]{nearest(name, _TABLES)}")
        if name == "measured":
            continue
        if not isinstance(table, dict):
            raise InputError(f"{path} has {name} = {table!r}; make it a table [{name}]")
        if (known := _TABLES[name]) is not None:
            _check_table(table, known, name, path)
    if "method" not in recipe.get("distill", {}):
        raise InputError(f'{path} names no method; add method = "csdm" to [distill]')
    own = recipe.get("method", {})
    kind: Any = find(recipe["distill"]["method"])
    parts = {name for name, part in parts_of(kind()) if len(part.kinds) > 1}
    method = kind.budget("paper", **{k: v for k, v in own.items() if k in parts})
    _check_table(own, flat_hints(method), "method", path)
    for key in ("network", "protocol"):
        if recipe.get("evaluate", {}).get(key) == []:
            raise InputError(f"{path} has {key} = [] in [evaluate]; name at least one {key}")
    return recipe


def _check_table(table: dict[str, Any], known: dict[str, Any], name: str, path: Path) -> None:
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{path} has {key!r} in [{name}]{nearest(key, known)}")
        check_value(f"{key} in [{name}] of {path}", value, known[key])


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
    """Distil, evaluate and report; return the run folder and the score records.

    Everything the recipe says is checked before the first part begins; what is finished already
    (the artifact, a score of the same protocol, runs and seed) is not done again.
    """
    recipe = read_recipe(path)
    about = recipe["distill"]
    run = make_run(about.get("seed", 0) if seed is None else seed)
    chosen = Data(**recipe.get("data", {}) | ({"data": data} if data else {}))
    folder = out or Path("runs") / path.stem
    options = {"runs": 5, "full": False} | recipe.get("evaluate", {})
    names = options.pop("network", ["convnet-w128-in"])
    networks = [names] if isinstance(names, str) else list(names)
    how = {key: options.pop(key, None) for key in ("prior", *fields_of(Taught))}
    asked = options.pop("protocol", "default")
    asked = [asked] if isinstance(asked, str) else asked
    protocols = [find_protocol(name, **how) for name in asked]
    for protocol in protocols:
        check_networks(networks, protocol)
    passed_on = ("inherit", "head_prior", "kd")
    inherit = inheritance(*(options.pop(key, None) for key in passed_on))
    size = {"ipc": about.get("ipc", 10), "label": about.get("budget", "quick")}
    distill(method_of(recipe), chosen, out=folder, run=run, force=force, **size)
    given = {"networks": networks, "inherit": inherit, **options}
    records = [
        record
        for protocol in protocols
        for record in evaluated(folder, run.with_(seed=0), protocol=protocol, **given)
    ]
    report(folder, None)
    return folder, records
