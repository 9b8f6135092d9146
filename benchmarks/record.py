"""Put a run's newest score into its recipe, as a ``[[measured]]`` table.

    potstill recipe recipes/dm/cifar10-lt10-ipc10-quick.toml --out runs/dm10
    python benchmarks/record.py runs/dm10 recipes/dm/cifar10-lt10-ipc10-quick.toml
    python benchmarks/results_table.py

A run that was made with other data, method or hyper-parameters than the recipe names is refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from potstill.recipe import method_of, read_recipe
from potstill.run import InputError


def differences(recipe: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """Names of what the run did otherwise than the recipe says; where the data lie may differ."""
    asked, method = recipe["distill"], method_of(recipe)
    wanted = {"method": asked["method"], "ipc": asked.get("ipc", 10), "fields": method.fields()}
    data = {key: value for key, value in recipe.get("data", {}).items() if key != "data"}
    found = [key for key, value in wanted.items() if job[key] != value]
    return found + [key for key, value in data.items() if job["data"].get(key) != value]


def measured(run: dict[str, Any], score: dict[str, Any]) -> dict[str, Any]:
    """Fields of the table; ``seconds`` are those of distilling, trained networks included."""
    random, protocol = (score["random"] or {}).get("accuracy"), score["protocol"]
    steps = run["job"]["fields"].get("steps", 0)
    return {
        **{key: score[key] for key in ("date", "device", "threads")},
        **{"seconds": run["seconds"], "steps": steps, "seed": run["job"]["seed"]},
        **{"accuracy": score["accuracy"]["mean"], "std": score["accuracy"]["std"]},
        **{"runs": score["runs"]},
        **{name: group["mean"] for name, group in score["groups"].items()},
        **({"random_accuracy": random["mean"], "random_std": random["std"]} if random else {}),
        **{"network": score["network"], "protocol": protocol["name"]},
        **{"protocol_hash": protocol["hash"], "artifact": score["artifact"]},
    }


def record(folder: Path, path: Path) -> None:
    """Append the table to the recipe at ``path``."""
    run = json.loads((folder / "run.json").read_text("utf-8"))
    score = json.loads((folder / "scores.json").read_text("utf-8"))["scores"][-1]
    other = differences(read_recipe(path), run["job"])
    if other:
        raise InputError(f"{folder} differs from {path} in {', '.join(other)}; give its own run")
    fields = measured(run, score).items()
    tidy = {key: round(value, 2) if isinstance(value, float) else value for key, value in fields}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in tidy.items()]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n[[measured]]\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("recipe", type=Path, help="recipe of that run")
    chosen = parser.parse_args()
    try:
        record(chosen.run, chosen.recipe)
    except (InputError, FileNotFoundError) as error:
        parser.error(str(error))
