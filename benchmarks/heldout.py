"""Probe accuracy on held-out training images of CIFAR-10-LT, for settings of the backbone methods.

The long tail leaves out most training images of nine classes; 200 of each are looked at here, never
the test set (the largest class has none left). So the ``quick`` budgets of LGM and SFM were set
(docs/decisions.md, docs/methods/sfm.md). A setting is METHOD|IPC|JSON of fields:

    python benchmarks/heldout.py --data CIFAR10 'sfm|10|{"sub_centres": "off"}' 'lgm|1|'

The backbone is ``self:convnet-w64-bn``, trained on the long-tailed images (17 minutes on one core)
and kept in the cache. One line of JSON per setting.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import potstill
from potstill.data.views import Views
from potstill.experts.backbones import backbone_for
from potstill.experts.features import image_features
from potstill.nets.head_training import HeadTraining, train_heads
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

BACKBONE, PER_CLASS, VIEWS, HEADS = "self:convnet-w64-bn", 200, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="+", metavar="METHOD|IPC|JSON")
    parser.add_argument("--data", default="cifar10", help="a local copy, or the hub name")
    parser.add_argument("--imbalance-factor", type=float, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    run = Run(quiet=True)
    whole, _, _ = potstill.load_pair(options.data)
    real = whole.long_tailed(options.imbalance_factor)
    left = torch.ones(len(whole), dtype=torch.bool)
    left[real.indices] = False
    rows = [
        torch.nonzero((whole.labels == label) & left).flatten()[:PER_CLASS]
        for label in range(1, whole.num_classes)
    ]
    held = torch.cat(rows)
    backbone = backbone_for(BACKBONE, real, run)
    seen, labels = image_features(whole.batch(held), backbone, None, None), whole.labels[held]
    views = Views(noise=0.0)
    for setting in options.settings:
        name, ipc, fields = setting.split("|")
        own = json.loads(fields or "{}")
        began = time.monotonic()
        method = potstill.CATALOGUE[name].budget("quick", backbone=BACKBONE, **own)
        syn = method(real, int(ipc), run)
        table = torch.stack(
            [
                image_features(
                    syn.images, backbone, views, views.draw(len(syn), run.generator("views", k))
                )
                for k in range(VIEWS)
            ]
        )
        weight, bias = train_heads(
            table, syn.labels, real.num_classes, HeadTraining(epochs=1000), heads=HEADS,
            generators=lambda purpose, k, index: run.generator(f"heldout/{purpose}", k, index),
        )  # fmt: skip
        right = (seen @ weight.transpose(1, 2) + bias[:, None]).argmax(-1) == labels
        accuracy = [
            100 * right[:, labels == label].float().mean().item()
            for label in range(1, real.num_classes)
        ]
        record = {
            "setting": setting,
            "accuracy": round(sum(accuracy) / len(accuracy), 1),
            "by_class": [round(value) for value in accuracy],
            "seconds": round(time.monotonic() - began),
            "device": describe("cpu")["device"],
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
