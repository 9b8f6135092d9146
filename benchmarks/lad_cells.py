"""Recipes for the cells of LAD's tables 1 and 2 of methods that are not its own.

    python benchmarks/lad_cells.py            write those that are not there
    python benchmarks/lad_cells.py --check    write none, fail if a published figure differs

What is published stands here once, as printed in arXiv 2408.14506; settings are those of each
method's own paper, because LAD's does not say how it ran the others. A recipe that is there is not
written again: it may hold what was measured.
"""

from __future__ import annotations

import argparse
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
COLUMNS = {
    "cifar10": [*product((10, 50, 100, 200), (10, 20, 50))],
    "cifar100": [*product((10, 20), (10, 20, 50))],
    "tiny-imagenet": [*product((10, 20), (10, 20, 50))],
}
PUBLISHED = {  # percent, in the order of the columns
    "random": {
        "cifar10": "32.5 39.6 51.9 33.2 42.0 51.6 34.4 41.4 52.6 32.5 42.2 49.9",
        "cifar100": "14.2 21.7 32.1 15.0 21.6 30.5",
        "tiny-imagenet": "7.4 13.5 20.6 7.6 13.2 19.8",
    },
    "kcenter": {
        "cifar10": "21.9 24.2 31.7 17.8 20.8 26.1 16.2 19.0 24.2 16.8 17.5 22.6",
        "cifar100": "10.7 15.9 24.8 10.0 15.1 23.8",
        "tiny-imagenet": "10.4 11.3 7.7 12.6 9.9 13.2",
    },
    "graphcut": {
        "cifar10": "28.7 34.2 40.6 24.2 28.6 33.9 22.9 26.0 33.3 22.3 25.2 29.2",
        "cifar100": "16.9 22.2 29.9 16.0 20.7 28.7",
        "tiny-imagenet": "9.8 5.6 10.9 3.4 5.0 4.2",
    },
    "dc": {
        "cifar10": "37.9 38.5 37.4 37.3 38.8 35.8 36.7 38.1 35.3 35.6 35.7 33.3",
        "cifar100": "24.0 27.4 27.4 23.2 26.2 27.4",
    },
    "dream": {
        "cifar10": "34.6 42.2 50.5 30.8 38.4 45.5 30.8 34.9 42.2 32.7 32.4 38.9",
        "cifar100": "10.1 12.0 13.1 9.4 10.3 12.3",
        "tiny-imagenet": "5.4 6.8 7.8 4.8 6.0 7.4",
    },
    "idm": {"cifar10": "54.8 57.1 60.1 51.9 53.3 56.1 49.8 50.9 53.1 47.0 48.1 49.9"},
}
TITLES = {
    "random": "Random real subset", "kcenter": "K-Center Greedy", "graphcut": "Graph-Cut",
    "dc": "DC", "dream": "DREAM", "idm": "IDM",
}  # fmt: skip
DATA = {"cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT", "tiny-imagenet": "Tiny ImageNet-LT"}
PROTOCOLS = {"dc": "dc", "dream": "idc"}  # others: dsa
QUOTAS = (
    "Quotas are those of DeepCore (proportional to class size), which we infer from the fall of "
    "the published row with the imbalance factor; balanced quotas are the default elsewhere."
)
NOTES = {
    "random": "The published row does not say how students were trained.",
    "kcenter": QUOTAS,
    "graphcut": QUOTAS,
    "dc": "LAD's paper does not say how it ran DC; settings are DC's for as many images.",
    "dream": "LAD's paper does not say how it ran DREAM; settings are DREAM's.",
    "idm": "LAD's paper does not say how it ran IDM; settings are IDM's. A loose target.",
}


def changed(method: str, data: str, ipc: int) -> dict[str, Any]:
    """Hyper-parameters that differ from the budget ``paper``, which is that of IPC 10."""
    if method in ("kcenter", "graphcut"):
        return {"quota": "proportional"}
    if method == "dc" and ipc > 10:
        return {"steps": 1000 * ipc}  # 1000 networks of as many steps as images per class
    if method == "idm" and ipc == 50:
        return {"ce_weight": 0.1}
    if method == "dream" and data == "tiny-imagenet":
        return {"batch_real": 64, "real_steps": 16}  # 1000 images per step of the network
    return {}


def recipe(method: str, data: str, factor: int, ipc: int, figure: float) -> str:
    """The file of one cell."""
    table = 1 if data == "cifar10" else 2
    lines = [
        "# Published steps, networks and widths: for a GPU, long on a CPU. Without [[measured]]: "
        "not run yet.",
        "[about]",
        f'title = "{TITLES[method]}, {DATA[data]}, imbalance factor {factor}, {ipc} images per '
        'class"',
        f'paper = "LTDD (LAD), CVPR 2025, arXiv 2408.14506, table {table}"',
        f"paper_accuracy = {figure}",
        f'paper_protocol = "LTDD table {table}; training of this row not stated"',
        f'note = "{NOTES[method]}"',
        *(['fingerprint = "ea6fd5ec41b1ed32"'] if data == "cifar10" else []),
        "",
        "[data]",
        f'data = "{data}"',
        *(["image_size = 64", "channels = 3"] if data == "tiny-imagenet" else []),
        f"imbalance_factor = {factor}",
        *("", "[distill]", f'method = "{method}"', f"ipc = {ipc}", 'budget = "paper"', "seed = 0"),
    ]
    own = changed(method, data, ipc)
    if own:
        lines += ["", "[method]"]
        lines += [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in own.items()]
    lines += ["", "[evaluate]", 'network = ["convnet-w128-in"]']
    lines += [f'protocol = "{PROTOCOLS.get(method, "dsa")}"', "runs = 5"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write what is missing, or compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options, status = parser.parse_args(), 0
    for method, tables in PUBLISHED.items():
        for data, row in tables.items():
            figures = map(float, row.split())
            for (factor, ipc), figure in zip(COLUMNS[data], figures, strict=True):
                path = RECIPES / method / f"{data}-lt{factor}-ipc{ipc}.toml"
                if not path.exists() and not options.check:
                    path.write_text(recipe(method, data, factor, ipc, figure), "utf-8")
                there = tomllib.loads(path.read_text("utf-8")) if path.exists() else {"about": {}}
                if there["about"].get("paper_accuracy") != figure:
                    print(f"{path}: {there['about'].get('paper_accuracy')}, published {figure}")
                    status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
