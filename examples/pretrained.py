"""Distil for a frozen backbone, and let a receiver with another backbone inherit a classifier.

Run it with ``python examples/pretrained.py [--quick]``. The backbone is trained without labels on
the images themselves; ``backbone="dinov2_vitb"`` would download a pre-trained one.
"""

from __future__ import annotations

import argparse
import tempfile

import potstill
from potstill.evaluation import PROBES, Inheritance

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
quick = parser.parse_args().quick
steps, epochs, runs = (40, 2, 2) if quick else (500, 200, 5)

train, test, _ = potstill.load_pair("digits")
train = train.long_tailed(10)
eye = {"backbone": "self:convnet-w32-bn", "backbone_epochs": epochs, "flip": 0.0}  # no mirrored 2
sfm = potstill.CATALOGUE["sfm"].budget("quick", steps=steps, grow_every=40, crop_min=0.5, **eye)
near = potstill.CATALOGUE["centroids"].budget("quick", **eye)
probe = PROBES["probe-noflip"].with_(epochs=100 if quick else 1000)

for method in (sfm, near):
    with tempfile.TemporaryDirectory() as folder:
        syn = potstill.distill(method, train, ipc=5, out=folder)
    # "same" is the backbone that chose the images, the other one belongs to a receiver
    same, other = potstill.evaluate(
        syn,
        train,
        test,
        network=["same", "convnet-w32-in"],
        protocol=probe,
        runs=runs,
        inherit=Inheritance(projector="ridge", prior="logit_adjusted"),
    )
    print(
        f"{method.info.name:10s} same backbone {same.accuracy['mean']:.1f} %, another "
        f"{other.accuracy['mean']:.1f} %; with an inherited classifier of "
        f"{other.inherited['head']['bytes']} bytes {other.inherited['accuracy']['mean']:.1f} %"
    )
print(f"random     same backbone {same.random['accuracy']['mean']:.1f} %")
