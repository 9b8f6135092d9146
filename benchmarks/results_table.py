"""Measured results in the documents, written from the recipes and from nothing else.

    python benchmarks/results_table.py            rewrite the tables
    python benchmarks/results_table.py --check    write nothing, fail if one of them is stale

A document holds ``<!-- results -->`` (or ``<!-- results METHOD -->``) and ``<!-- /results -->``;
what stands between them is replaced. ``record.py`` puts measurements into the recipes.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from potstill.app.recipe import method_of, read_recipe
from potstill.methods import CATALOGUE
from potstill.run import InputError

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- results(?: (\w+))? -->\n).*?(<!-- /results -->)", re.DOTALL)
NEEDED = ("date", "device", "accuracy", "runs", "network", "protocol", "protocol_hash")
COLUMNS = (
    "method", "data", "imbalance", "IPC", "budget", "labels", "kB", "student", "protocol",
    "updates", "accuracy", "head / medium / tail", "start", "over start", "random", "mosaic",
    "full", "ceiling", "% of ceiling", "inherited head", "paper", "device", "seconds", "peak GB",
)  # fmt: skip
SPARSE = (  # left out where no row has one
    "labels", "kB", "updates", "start", "over start", "mosaic", "full", "ceiling", "% of ceiling",
    "inherited head", "peak GB",
)  # fmt: skip
AUTOMATIC = 4  # tiles of a stored image where the method chooses, from 16 pixels up
Entry = tuple[str, dict[str, Any], dict[str, Any]]  # recipe's name, recipe, measurement or {}


def entries(root: Path) -> Iterator[Entry]:
    """Each recipe with its newest measurement per student, protocol and device, over all seeds."""
    for path in sorted((root / "recipes").rglob("*.toml")):
        recipe, newest = read_recipe(path), dict[tuple[str, ...], dict[Any, dict[str, Any]]]()
        for number, row in enumerate(recipe.get("measured", [])):
            missing = [key for key in NEEDED if key not in row]
            if missing:
                raise InputError(f"{path}: [[measured]] {number + 1} lacks {', '.join(missing)}")
            seeds = newest.setdefault((row["network"], row["protocol_hash"], row["device"]), {})
            if any(row.get("fields") != other.get("fields") for other in seeds.values()):
                seeds.clear()  # of another version of the method
            seeds[row.get("seed")] = row
        for row in [merged([*seeds.values()]) for seeds in newest.values()] or [{}]:
            yield path.relative_to(root / "recipes").with_suffix("").as_posix(), recipe, row


def merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement of several distillation seeds: means, and the spread of all students.

    Its square is the variance of the seeds' means plus that of r students about their mean, of
    which 1 / r is in the means already; seeds of one student each have the spread between them.
    """
    if len(rows) == 1:
        return rows[0]
    found = {key: value for key, value in rows[-1].items() if all(key in row for row in rows)}
    for key in found:
        values = [row[key] for row in rows]
        if key.endswith("std"):
            means = [row[f"{key.removesuffix('std')}accuracy"] for row in rows]
            within = statistics.mean(value**2 for value in values)
            found[key] = (within * (1 - 1 / rows[0]["runs"]) + statistics.variance(means)) ** 0.5
        elif key in ("head", "medium", "tail", "seconds") or key.endswith("accuracy"):
            found[key] = statistics.mean(values)
        elif key == "peak_memory_gb":
            found[key] = max(values)
    alone = {} if "std" in found else {"std": statistics.stdev(row["accuracy"] for row in rows)}
    return found | alone | {"seeds": len(rows)}


def order(entry: Entry) -> tuple[Any, ...]:
    """Comparable rows stand together: same data, size, budget, student, protocol, device."""
    _, recipe, row = entry
    about, data = recipe["distill"], recipe.get("data", {})
    return (
        data.get("data", "digits"), data.get("subset", ""), data.get("imbalance_factor", 1),
        about.get("ipc", 10),
        about.get("budget", "quick"), row["network"], row["protocol_hash"], row["device"],
        list(CATALOGUE).index(about["method"]), len(recipe.get("method", {})),
    )  # fmt: skip


def conditions(recipe: dict[str, Any], row: dict[str, Any]) -> tuple[Any, ...]:
    """What two rows have in common whose references are the same: data, size, student, device."""
    about, data = recipe["distill"], recipe.get("data", {})
    return (
        data.get("data", "digits"), data.get("subset", ""), data.get("imbalance_factor", 1),
        about.get("ipc", 10), row["network"], row["protocol_hash"], row["runs"], row["device"],
    )  # fmt: skip


def tiles(recipe: dict[str, Any], row: dict[str, Any]) -> int | None:
    """Training images in a stored one, as measured or as the recipe says; None if automatic."""
    factor = method_of(recipe).fields().get("factor", 1)
    return row.get("views", factor**2 or None)


def mosaics(rows: Iterable[Entry]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Measurements of random mosaics, which are the reference of every tiled set."""
    return {
        (conditions(recipe, row), tiles(recipe, row)): row
        for _, recipe, row in rows
        if row and recipe["distill"]["method"] == "mosaic"
    }


def mosaic(recipe: dict[str, Any], row: dict[str, Any], known: dict[Any, dict[str, Any]]) -> str:
    """What random mosaics of equal storage reach beside a tiled set.

    Measured with it or, under the same conditions, by the recipe of ``mosaic``.
    """
    count = tiles(recipe, row)
    if count == 1:
        return "–"
    if "mosaic_accuracy" in row:
        return spread(row["mosaic_accuracy"], row.get("mosaic_std"))
    of = known.get((conditions(recipe, row), count or AUTOMATIC))
    return spread(of["accuracy"], of.get("std")) if of else "not measured"


def ceilings(rows: Iterable[Entry]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Measurements of a debiased ceiling, by data and student: those of any recipe serve all."""
    return {of_ceiling(recipe, row): row for _, recipe, row in rows if "ceiling_accuracy" in row}


def of_ceiling(recipe: dict[str, Any], row: dict[str, Any]) -> tuple[Any, ...]:
    """What two rows have in common whose ceiling is the same."""
    return (*sorted(({"data": "digits"} | recipe.get("data", {})).items()), row["network"])


def imbalance(data: dict[str, Any], row: dict[str, Any]) -> str:
    """The factor that the set has, and the one asked for where that is another."""
    asked = data.get("imbalance_factor", 1)
    own = f"{row.get('imbalance_factor', asked):.4g}"
    return own if own == f"{asked:.4g}" or asked == 1 else f"{own} (asked for {asked:g})"


def spread(mean: float, std: float | None) -> str:
    """Mean and spread; a single student has none."""
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def cells(
    recipe: dict[str, Any],
    row: dict[str, Any],
    known: dict[Any, dict[str, Any]],
    most: dict[Any, dict[str, Any]],
) -> list[str]:
    """One table row, as text; ``known`` are the measured mosaics, ``most`` the ceilings."""
    about, data, paper = recipe["distill"], recipe.get("data", {}), recipe.get("about", {})
    groups = [f"{row[name]:.1f}" for name in ("head", "medium", "tail") if name in row]

    def beside(name: str) -> str:
        found = row.get(f"{name}_accuracy")
        alone = " (head alone)" if row.get(f"{name}_alone") else ""
        epochs, prior = row.get(f"{name}_epochs"), row.get(f"{name}_prior")
        by = f"{prior}, " if prior else ""
        trained = f" ({by}{epochs} epochs, `{row[f'{name}_hash']}`)" if epochs else ""
        return "–" if found is None else spread(found, row.get(f"{name}_std")) + alone + trained

    def inherited() -> str:
        by = {"random": "random", "whole": "all real"}
        known = {n: row.get(f"inherited_{n}_accuracy") for n in by}
        others = [f"{by[n]} {value:.1f}" for n, value in known.items() if value is not None]
        text = beside("inherited") + (f" ({', '.join(others)})" if others else "")
        return text + (f", KD {row['kd_accuracy']:.1f}" if "kd_accuracy" in row else "")

    random = beside("random")
    students = f"{row['seeds']} x {row['runs']}" if "seeds" in row else row["runs"]
    gained = row["accuracy"] - row["start_accuracy"] if "start_accuracy" in row else None
    ceiling = row if "ceiling_accuracy" in row else most.get(of_ceiling(recipe, row), {})
    share = 100 * row["accuracy"] / ceiling["ceiling_accuracy"] if ceiling else None
    published = f"{paper['paper_accuracy']:.1f}" if "paper_accuracy" in paper else "–"
    if "paper_protocol" in paper:
        published += f" ({paper['paper_protocol']})"
    changed = ", ".join(f"{k} {v}" for k, v in recipe.get("method", {}).items())
    values = [
        about["method"] + (f" ({changed})" if changed else ""),
        data.get("data", "digits") + (f" ({data['subset']})" if "subset" in data else ""),
        imbalance(data, row),
        about.get("ipc", 10), about.get("budget", "quick"), row.get("tier", "–"),
        f"{row['bytes'] / 1000:.0f}" if "bytes" in row else "–", row["network"],
        f"{row['protocol']} `{row['protocol_hash']}`", row.get("updates", "–"),
        f"{spread(row['accuracy'], row.get('std'))} ({students})", " / ".join(groups) or "–",
        beside("start"), "–" if gained is None else f"{gained:+.1f}",
        random, mosaic(recipe, row, known), beside("full"),
        beside("ceiling"), "–" if share is None else f"{share:.1f}", inherited(), published,
        f"{row['device']}, {row['date']}",
        f"{row['seconds']:.0f}" if "seconds" in row else "–",
        f"{row['peak_memory_gb']:.2f}" if "peak_memory_gb" in row else "–",
    ]  # fmt: skip
    return [str(value).replace("|", r"\|") for value in values]


def table(root: Path, method: str | None, brief: bool = False) -> str:
    """Markdown of all measurements, or of one method's; then what waits to be measured."""
    everything = list(entries(root))
    known, most = mosaics(everything), ceilings(everything)
    chosen = [e for e in everything if method in (None, e[1]["distill"]["method"])]
    if brief:  # by the first student of each recipe
        chosen = list({entry[0]: entry for entry in reversed(chosen)}.values())[::-1]
    measured = sorted((e for e in chosen if e[2]), key=order)
    body = [cells(recipe, row, known, most) for _, recipe, row in measured]
    kept = [
        k for k, name in enumerate(COLUMNS)
        if name not in SPARSE or any(row[k] != "–" for row in body)
    ]  # fmt: skip
    rows = [[row[k] for k in kept] for row in (list(COLUMNS), ["---"] * len(COLUMNS), *body)]
    lines = [f"| {' | '.join(row)} |" for row in rows] if measured else []
    waiting = [f"`{name}`" for name, _, row in chosen if not row]
    if waiting:
        names = ", ".join(waiting)
        if method is None and len(waiting) > 20:  # every method's page names its own
            counts = Counter(name.strip("`").partition("/")[0] for name in waiting)
            names = ", ".join(f"{count} of {kind}" for kind, count in sorted(counts.items()))
            names += " (named on the page of each method)"
        if brief:
            names = f"{len(waiting)} recipes (docs/results.md)"
        lines += ["", f"Written but not measured yet: {names}."]
    return "\n".join(lines).strip()


def render(root: Path, text: str, brief: bool = False) -> str:
    """The document with its blocks renewed."""
    return BLOCK.sub(lambda b: f"{b[1]}\n{table(root, b[2], brief)}\n\n{b[3]}", text)


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Run; the exit code is 1 if ``--check`` found a stale document."""
    parser = argparse.ArgumentParser(description="Renew the tables of measured results.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    check, stale = parser.parse_args(words).check, False
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        old = path.read_text("utf-8")
        new = render(root, old, brief=path.name == "README.md")
        if new != old:
            stale = True
            print(path.relative_to(root), "is stale" if check else "renewed", file=sys.stderr)
            if not check:
                path.write_text(new, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
