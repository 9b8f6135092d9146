"""Put a run's newest score into its recipe, as a ``[[measured]]`` table.

    potstill recipe recipes/dm/cifar10-lt10-ipc10-quick.toml --out runs/dm10
    python benchmarks/record.py runs/dm10 recipes/dm/cifar10-lt10-ipc10-quick.toml
    python benchmarks/results_table.py

A run that was made with other data, method or hyper-parameters than the recipe names is refused,
and so is one without a score by the recipe's student, protocol and number of runs. Its seed may be
another (``potstill recipe FILE --seed 1``): the table shows the mean over all seeds of a recipe.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.app.flags import Taught
from potstill.app.job import Data
from potstill.app.recipe import method_of, read_recipe
from potstill.evaluation import Probe, find_protocol
from potstill.evaluation.inheritance import fits, inheritance
from potstill.evaluation.record import names_of
from potstill.methods import find
from potstill.nets import parse
from potstill.run import InputError
from potstill.run.checkpoint import digest
from potstill.run.fields import fields_of


def unusual(method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that are not at their default: those that came later change nothing for older runs."""
    usual = find(method)().fields()
    return {name: value for name, value in fields.items() if value != usual.get(name)}


def differences(recipe: dict[str, Any], job: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Names of what the run did otherwise than the recipe says; where the data lie may differ.

    ``data`` is what the artifact's provenance says about them.
    """
    asked, method = recipe["distill"], method_of(recipe)
    name = asked["method"]
    wanted = {"method": name, "ipc": asked.get("ipc", 10), "fields": unusual(name, method.fields())}
    own = {**job, "fields": unusual(name, job["fields"])}
    found = [key for key, value in wanted.items() if own[key] != value]
    options = asdict(Data(**recipe.get("data", {})))
    options.pop("data")
    asked_for = asdict(Data())
    found += [k for k, value in options.items() if job["data"].get(k, asked_for[k]) != value]
    fingerprint = recipe.get("about", {}).get("fingerprint")
    if fingerprint is not None and data.get("fingerprint") != fingerprint:
        found.append("fingerprint")
    if data.get("checksum", job.get("train_checksum")) != job.get("train_checksum"):
        found.append("train_checksum")
    return found


def scores_of(
    recipe: dict[str, Any], run: dict[str, Any], scores: list[dict[str, Any]], shape: list[int]
) -> list[dict[str, Any]]:
    """Newest score by each network and protocol of the recipe, of the run's artifact on its data.

    All else has to be as [evaluate] says, too.
    """
    asked = {"network": "convnet-w128-in", "protocol": "default", "runs": 5}
    asked |= recipe.get("evaluate", {})
    names = [asked["network"]] if isinstance(asked["network"], str) else asked["network"]
    taught = {key: asked.get(key) for key in ("prior", *fields_of(Taught))}
    protocols = asked["protocol"]
    protocols = [protocols] if isinstance(protocols, str) else protocols
    ways = [find_protocol(name, **taught) for name in protocols]
    hashes, networks = {how.hash for how in ways}, set(names)
    if not any(isinstance(how, Probe) for how in ways):
        networks = {str(parse(name).at((shape[1], shape[2]))) for name in names}
    inherit = inheritance(*(asked.get(key) for key in ("inherit", "head_prior", "kd")))
    own = [score for score in scores if score.get("artifact") == run["artifact"]]
    if not own:
        raise InputError(f"scores.json has no score of the run's artifact {run['artifact']}")
    train = ("", run["job"].get("train_checksum"))  # "" in files of older versions
    conditions = {
        "network": lambda s: bool(networks & set(names_of(s["network"], s.get("backbone")))),
        "protocol": lambda s: s["protocol"]["hash"] in hashes,
        "runs": lambda s: s["runs"] == asked["runs"],
        "train_checksum": lambda s: s.get("train_checksum", "") in train,
        "inherit": lambda s: fits(inherit, s.get("inherited"), s.get("kd")),
    }
    for name, fit in conditions.items():
        own = [score for score in own if fit(score)]
        if not own:
            raise InputError(f"no score has the {name} of the recipe; run the recipe on its folder")
    seen = {
        (s["network"], (s.get("backbone") or {}).get("key"), s["protocol"]["hash"]): s for s in own
    }
    return list(seen.values())


def measured(run: dict[str, Any], score: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Fields of the table; ``seconds`` are those of distilling, trained networks included."""
    beside = {}
    for name in ("start", "mosaic", "full", "ceiling", "inherited", "kd"):
        if score.get(name):
            beside |= {f"{name}_accuracy": score[name]["accuracy"]["mean"]}
            beside |= {f"{name}_std": score[name]["accuracy"]["std"]}
    for name in ("full", "ceiling"):
        own = (score.get(name) or {}).get("protocol") or {}
        epochs = own.get("training", {}).get("epochs")
        beside |= {f"{name}_epochs": epochs, f"{name}_hash": own.get("hash")}
        beside |= {f"{name}_prior": own.get("prior")}
    for name in ("random", "whole"):  # the same head behind maps fitted on real images
        if found := (score.get("inherited") or {}).get(name):
            beside |= {f"inherited_{name}_accuracy": found["accuracy"]["mean"]}
    if beside.get("inherited_accuracy") and score["inherited"]["same_backbone"]:
        beside["inherited_alone"] = True  # the images play no part in it
    random, protocol = (score["random"] or {}).get("accuracy"), score["protocol"]
    job = run["job"]
    steps = job["fields"].get("steps", 0)
    return {
        **{key: score[key] for key in ("date", "device", "threads")},
        **{"seconds": run["seconds"], "steps": steps, "seed": job["seed"]},
        **{"fields": digest([unusual(job["method"], job["fields"])])[:8]},  # equal: one row
        **{"imbalance_factor": made["data"].get("imbalance_factor")},  # that the set has
        **{"views": (score.get("mosaic") or {}).get("views", 1)},  # training images in a stored one
        **{"accuracy": score["accuracy"]["mean"], "std": score["accuracy"]["std"]},
        **{"runs": score["runs"], "updates": score.get("updates")},
        **{"tier": score.get("label_tier"), "bytes": score.get("receiver_bytes")},
        **{name: group["mean"] for name, group in score["groups"].items()},
        **({"random_accuracy": random["mean"], "random_std": random["std"]} if random else {}),
        **beside,
        **{"peak_memory_gb": made.get("peak_memory_gb")},
        **{"backbone_seconds": (made.get("backbone") or {}).get("trained_seconds")},
        **{"network": score["network"], "protocol": protocol["name"]},
        **{"protocol_hash": protocol["hash"], "artifact": score["artifact"]},
    }


def record(folder: Path, path: Path) -> None:
    """Append the table to the recipe at ``path``."""
    run = json.loads((folder / "run.json").read_text("utf-8"))
    scores = json.loads((folder / "scores.json").read_text("utf-8"))["scores"]
    made = json.loads((folder / "synthetic" / "provenance.json").read_text("utf-8"))
    recipe, artifact = read_recipe(path), made["artifact"]
    if run.get("status") != "finished" or artifact["checksum"] != run["artifact"]:
        raise InputError(f"{folder} holds an unfinished run; finish it first")
    other = differences(recipe, run["job"], made["data"])
    if other:
        raise InputError(f"{folder} differs from {path} in {', '.join(other)}; give its own run")
    for score in scores_of(recipe, run, scores, artifact["shape"]):
        fields = measured(run, score, made)
        tidy = {k: round(v, 2) if isinstance(v, float) else v for k, v in fields.items()}
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in tidy.items()
            if value is not None
        ]
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
