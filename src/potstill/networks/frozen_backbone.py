"""A frozen, pre-trained backbone as the part of a method through which images are seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.data import ImageSet, Normalize
from potstill.experts.backbones import backbone_for, check_backbone, identify
from potstill.nets.backbone import Backbone, split_name
from potstill.nets.weights import is_weights_file, split
from potstill.networks.feature_networks import Networks
from potstill.networks.parts import NetworkSpec
from potstill.run import Run
from potstill.run.fields import Epochs, Share

__all__ = ["BackboneNetworks", "FrozenBackbone"]


class BackboneNetworks(Networks):
    """One frozen backbone; ``transform`` is a receiver's, the backbone has its own constants."""

    def __init__(self, backbone: Backbone, transform: Normalize, seconds: float) -> None:
        self.backbone, self.key, self.members = backbone, backbone.key, 1
        self.dim, self.transform = backbone.dim, transform
        self.seconds_apart = seconds  # opening or training it: its own cost, named in the facts

    def facts(self) -> dict[str, Any]:
        """What an artifact says about the backbone it was made with."""
        return {
            "backbone": {
                "label": self.backbone.label,
                "key": self.backbone.key,
                "features": self.backbone.dim,
                "input": [self.backbone.channels, *self.backbone.size],
                "mean": self.backbone.transform.mean.tolist(),
                "std": self.backbone.transform.std.tolist(),
                "bytes": self.backbone.nbytes,
                "trained_seconds": self.backbone.trained_seconds,
            }
        }


@dataclass(frozen=True, kw_only=True)
class FrozenBackbone(NetworkSpec, kind="backbone"):
    """A frozen backbone, by its name."""

    backbone: str = "dinov2_vitb"  # short name, timm:, transformers:, folder, self:NETWORK
    backbone_epochs: Epochs = 30  # of the training without labels of a self: backbone
    flip: Share = 0.5  # probability of a mirrored view; 0 for digits and letters

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse a backbone before anything is trained or written."""
        check_backbone(self.backbone, real, self.backbone_epochs, self.flip)

    def meaning(self, real: ImageSet, run: Run) -> str:
        """Return what the backbone's name stands for, for the identity of a job."""
        return identify(self.backbone, real, run, epochs=self.backbone_epochs, flip=self.flip)

    @property
    def travelling(self) -> Mapping[str, str]:
        """The backbone's name: a folder without where it lies."""
        base = split_name(self.backbone)[0]
        if is_weights_file(base):
            architecture, file = split(base)
            rest = self.backbone.strip()[len(base) :]
            return {"backbone": f"timm:{architecture}@{file.name}{rest}"}
        kind = "transformers:" if base.startswith("transformers:") else ""
        place = Path(base[len(kind) :]).expanduser()
        if not place.is_dir():
            return {}
        return {"backbone": kind + place.name + self.backbone.strip()[len(base) :]}

    def open(self, real: ImageSet, run: Run) -> BackboneNetworks:
        """Open the backbone, or train it."""
        began = time.monotonic()
        found = backbone_for(self.backbone, real, run, epochs=self.backbone_epochs, flip=self.flip)
        return BackboneNetworks(found, Normalize.fit(real), time.monotonic() - began)
