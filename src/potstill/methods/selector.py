"""Methods that choose real images, and sets of real images, whole or laid out in mosaics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from potstill.data import ImageSet, Normalize
from potstill.methods.base import Method
from potstill.networks import Networks
from potstill.run import Run
from potstill.run.fields import Batch, check_value
from potstill.synthetic import SyntheticSet

__all__ = ["Chosen", "Selector", "real_set"]


class Chosen(NamedTuple):
    """What a selector chose."""

    positions: Tensor  # (n,) in the real set, class-sorted
    networks: Networks | None = None  # by which they were chosen
    weights: Tensor | None = None  # float32 (n,), of each image


def real_set(
    real: ImageSet, images: Tensor, labels: Tensor, provenance: dict[str, Any], **more: Any
) -> SyntheticSet:
    """Return images (n, c, h, w) that were taken from ``real``, behind its mean and deviation."""
    return SyntheticSet(
        images=images,
        labels=labels,
        classes=real.classes,
        transform=Normalize.fit(real),
        source_indices=real.indices if real.history else None,
        provenance=provenance,
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Selector(Method):
    """Methods that choose real images."""

    def select(self, real: ImageSet, ipc: int, run: Run) -> Chosen:
        """Return positions in ``real``, and the networks and weights if there are any."""
        raise NotImplementedError

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Return the chosen images; their positions in the source stand in the provenance."""
        check_value("ipc", ipc, Batch)
        self.check(real)
        began = time.monotonic()
        positions, networks, weights = self.select(real, ipc, run)
        seconds = time.monotonic() - began
        if networks is not None:
            seconds += networks.seconds_saved - networks.seconds_apart
        provenance = self.provenance(real, ipc, run, seconds)
        provenance["indices"] = real.indices[positions].tolist()
        provenance |= {} if networks is None else networks.facts()
        labels = real.labels[positions].clone()
        found = real_set(real, real.batch(positions), labels, provenance, weights=weights)
        return self.stored(found)
