"""Put the set of a measured run into the package, as ``potstill.load_distilled(NAME)`` reads it.

    python benchmarks/ship.py RUN RECIPE.toml

The run has to carry an artifact that the recipe's [[measured]] tables name. What is shipped has 8
bits a value and no start; ``provenance["shipped"]`` holds the recipe, the checksum of the float set
and the accuracy that its 8-bit view reached. The preview goes to docs/distilled.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from potstill.app.recipe import read_recipe
from potstill.evaluation import read_scores
from potstill.run import InputError
from potstill.synthetic import SyntheticSet

ROOT = Path(__file__).parents[1]
KEPT = ("synthetic.safetensors", "provenance.json")


def ship(run: Path, recipe: Path, root: Path = ROOT) -> Path:
    """Write ``src/potstill/distilled/NAME``; return it."""
    table, syn = read_recipe(recipe), SyntheticSet.load(run)
    measured = {row.get("artifact") for row in table.get("measured", [])}
    scores = [s for s in read_scores(run) if s.artifact == syn.checksum]
    if syn.checksum not in measured or not scores:
        raise InputError(f"{run} has artifact {syn.checksum}, which {recipe} has not measured")
    score = scores[-1]
    reached = score.quantized or {"accuracy": score.accuracy, "groups": score.groups}
    shipped = {
        "recipe": f"recipes/{recipe.parent.name}/{recipe.name}",
        "from": syn.checksum,
        "network": score.network,
        "protocol": score.protocol,
        "runs": score.runs,
        "accuracy": {key: reached["accuracy"].get(key) for key in ("mean", "std")},
        "groups": reached.get("groups", {}),
    }
    told = {
        key: value for key, value in syn.provenance.items() if key not in ("scores", "artifact")
    }
    small = replace(syn.in_bytes(), start=None, provenance=told | {"shipped": shipped})
    name = f"{recipe.parent.name}-{recipe.stem}".removesuffix("-quick")
    place = root / "src" / "potstill" / "distilled" / name
    with tempfile.TemporaryDirectory() as scratch:
        whole = small.save(Path(scratch) / name)
        place.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copyfile(whole / file, place / file)
        (root / "docs" / "distilled").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(whole / "preview.png", root / "docs" / "distilled" / f"{name}.png")
    return place


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put the set of a measured run into the package.")
    parser.add_argument("run", type=Path)
    parser.add_argument("recipe", type=Path)
    asked = parser.parse_args()
    print(ship(asked.run, asked.recipe))
