"""References on all real images: what the data teach a network, and what a method may hope for.

``full`` learns by plain cross-entropy, ``ceiling`` by the row of the long-tail table that did best
on held-out training images (docs/decisions.md, ``benchmarks/ceiling.py``), or by that of the
students' protocol if it names one. Both have one training, long enough to have converged there,
whatever the students' is: a ceiling belongs to a data set, a network and a test set, so that
percents of it can be compared. Only whether images are mirrored follows the students, for a
mirrored 2 is no 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from potstill.evaluation.protocol import PROTOCOLS, Protocol

__all__ = ["CEILING", "is_even", "prior_of", "reference"]

CEILING = "balanced_softmax"  # of losses.REMEDIES
_EPOCHS, _STEPS = 120, 5000  # at least so many of both


def is_even(counts: Sequence[int]) -> bool:
    """Whether all classes have equally many images, so that both references are one."""
    return len(set(counts)) == 1


def prior_of(what: str, beside: str) -> str:
    """Return the prior of "full" or "ceiling" beside students under the prior ``beside``."""
    if what == "full":
        return "plain"
    return CEILING if beside == "plain" else beside


def reference(what: str, beside: Protocol, images: int) -> Protocol:
    """Return the protocol of a reference on so many real images.

    Args:
        what: "full" or "ceiling". beside: the students' protocol. images: how many there are.
    """
    mirror = "" if beside.training.mirrors else "-noflip"
    training = PROTOCOLS[f"quick{mirror}"].training
    least = -(-_STEPS // training.steps(images))
    training = replace(training, epochs=max(_EPOCHS, least))
    return Protocol(name=what + mirror, training=training, prior=prior_of(what, beside.prior))
