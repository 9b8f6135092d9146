"""What README and the list of methods say of methods, from the catalogue and recipes alone.

    python benchmarks/readme_tables.py            rewrite the blocks and the figure
    python benchmarks/readme_tables.py --check    write nothing, fail if a block is stale

Blocks: ``<!-- families -->`` names every method, ``<!-- methods -->`` has a row for each, from its
catalogue entry (``info``); ``<!-- small -->`` is one setting of the results, ten methods or fewer.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from results_table import Entry, ceilings, entries, of_ceiling, spread

from potstill.methods import CATALOGUE
from potstill.reports.style import COLOURS, plot

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (families|methods|small) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
# the recipes that the small table shows, all of one setting
CELL = "cifar10-lt200-ipc10-quick"
SMALL = (
    *(f"{name}/{CELL}" for name in ("random", "mosaic", "graphcut", "dsa", "frepo", "dm", "lad")),
    *(f"sdm/{CELL}", f"csdm/{CELL}", f"sdm/{CELL}-subsampled"),
)
FIGURE = Path("docs") / "by-group.png"
GROUPS = ("head", "medium", "tail")


def shown(root: Path) -> list[Entry]:
    """Newest measurements of the small table, worst first."""
    found = {}
    for name, recipe, row in entries(root):
        if row and name in SMALL:
            found[name] = (name, recipe, row)
    return sorted(found.values(), key=lambda entry: entry[2]["accuracy"])


def small(root: Path) -> str:
    """Markdown of one setting: accuracy by class group, the start and random images beside it."""
    rows = shown(root)
    lines = [
        "| method | accuracy | head | medium | tail | before the first step | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for _, recipe, row in rows:
        method = recipe["distill"]["method"]
        start = "–"
        if "start_accuracy" in row:
            start = spread(row["start_accuracy"], row.get("start_std"))
        changed = ", ".join(f"{k} {v}" for k, v in recipe.get("method", {}).items())
        cells = [
            f"[`{method}`](docs/methods/{method}.md)" + (f" ({changed})" if changed else ""),
            spread(row["accuracy"], row.get("std")),
            *(f"{row[name]:.1f}" for name in GROUPS), start, f"{row['seconds']:.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *whole(root, rows)])


def whole(root: Path, rows: list[Entry]) -> list[str]:
    """Lines of all real images, plain and debiased, where they were measured for this setting."""
    everything = list(entries(root))
    known = {of_ceiling(r, row): row for _, r, row in everything if "full_accuracy" in row}
    found: dict[str, dict[str, Any]] = {}
    for _, recipe, row in rows:
        key = of_ceiling(recipe, row)
        found |= {"full": known[key]} if key in known else {}
        most = ceilings(everything).get(key)
        found |= {"ceiling": most} if most else {}
    titles = {"full": "all real images", "ceiling": "all real images, debiased"}
    return [
        f"| {titles[key]} | {spread(row[f'{key}_accuracy'], row.get(f'{key}_std'))} "
        "| – | – | – | – | – |"
        for key, row in found.items()
    ]


def families(prefix: str) -> str:
    """A row per family with the names of its methods."""
    groups: dict[str, list[str]] = {}
    for name, method in CATALOGUE.items():
        groups.setdefault(method.info.family, []).append(f"[`{name}`]({prefix}{name}.md)")
    rows = [f"| {family} | {', '.join(names)} |" for family, names in groups.items()]
    return "\n".join(["| family | methods |", "|---|---|", *rows])


def methods(prefix: str) -> str:
    """A row per method, from its catalogue entry."""
    rows = ["| name | method | paper | what it does about the long tail |", "|---|---|---|---|"]
    for name, method in CATALOGUE.items():
        info = method.info
        cells = [f"[`{name}`]({prefix}{name}.md)", info.title, info.paper, info.long_tail]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def render(root: Path, path: Path, text: str) -> str:
    """The document with its blocks renewed."""
    prefix = "docs/methods/" if path.parent == root else "methods/"

    def block(found: re.Match[str]) -> str:
        made = {"small": lambda: small(root), "families": lambda: families(prefix)}
        new = made.get(found[2], lambda: methods(prefix))()
        return f"{found[1]}\n{new}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def figure(root: Path, path: Path) -> bytes:
    """Draw the accuracy of head, medium and tail classes of each method of the small table."""
    rows = shown(root)

    def draw(axes: Any) -> None:
        for place, name in enumerate(GROUPS):
            heights = [row[name] for _, _, row in rows]
            spots = [index + 0.27 * (place - 1) for index in range(len(rows))]
            axes.bar(spots, heights, 0.25, color=COLOURS[name], label=name)
        names = [
            name.partition("/")[0] + name.partition(CELL)[2].replace("-", "\n") for name, *_ in rows
        ]
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="upper left", ncols=3)

    return plot("by-group", (8.0, 3.2), draw, path)


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Run; the exit code is 1 if ``--check`` found a stale block."""
    parser = argparse.ArgumentParser(description="Renew what README says of methods.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    check, stale = parser.parse_args(words).check, False
    for path in (root / "README.md", root / "docs" / "methods.md"):
        old = path.read_text("utf-8")
        new = render(root, path, old)
        if new != old:
            stale = True
            print(path.relative_to(root), "is stale" if check else "renewed", file=sys.stderr)
            if not check:
                path.write_text(new, encoding="utf-8")
    if not check:
        figure(root, root / FIGURE)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
