"""Distil a folder of pictures: one folder per class, any sizes, PNG, JPEG or WebP.

Run it with ``python examples/own_folder.py [--quick] [FOLDER]``. Without FOLDER a small one is
written from scikit-learn's digits first, so that this runs anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import potstill


def write_folder(root: Path, per_class: int) -> Path:
    """Write FOLDER/<class name>/<number>.png, the tree that most image folders have."""
    from PIL import Image

    digits = potstill.load("digits")
    for label, name in enumerate(digits.classes):
        place = root / f"digit {name}"
        place.mkdir(parents=True, exist_ok=True)
        for number, position in enumerate(digits.of_class(label)[:per_class].tolist()):
            Image.fromarray(digits.images[position, 0].numpy()).save(place / f"{number:03d}.png")
    return root


def main(quick: bool, folder: Path | None) -> None:
    folder = folder or write_folder(Path("runs/own-folder-pictures"), 20 if quick else 100)

    # There is no test folder, so a balanced hold-out is cut from the pictures first; `note` says
    # so, and the report repeats it. Give test="other/folder" if you have one. Pictures of several
    # sizes need image_size=32 (or more), with resize="crop", "stretch" or "pad".
    train, test, note = potstill.load_pair(folder)
    print(f"{len(train)} images of shape {train.shape}, classes {', '.join(train.classes)}")
    print(note)

    options = {"steps": 40, "members": 2, "pool_epochs": 2, "entries": 5} if quick else {}
    method = potstill.CATALOGUE["csdm"].budget("quick", **options)
    syn = potstill.distill(method, train, ipc=5, out="runs/own-folder", force=True)

    protocol = potstill.PROTOCOLS["quick-noflip"].with_(epochs=20 if quick else 100)
    (score,) = potstill.evaluate(
        syn, train, test, network="convnet-w32-in", protocol=protocol, runs=2 if quick else 5
    )
    random = score.random["accuracy"]
    print(f"distilled {score.accuracy['mean']:.1f} %, random subset {random['mean']:.1f} %")
    print("for torchvision's ImageFolder: runs/own-folder/synthetic/images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="your own folder of class folders")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    chosen = parser.parse_args()
    main(chosen.quick, chosen.folder)
