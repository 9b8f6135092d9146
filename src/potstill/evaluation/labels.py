"""Label tiers: what labels a receiver trains with, and what they weigh.

Scores of different tiers are not comparable: a soft label carries what a teacher learned from the
whole real set, and an online teacher *is* that knowledge. So tier and bytes stand beside every
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.canvas import canvas_spec
from potstill.data.transform import Transform
from potstill.losses import adjust
from potstill.nets import Network, predict
from potstill.run import InputError, nearest
from potstill.synthetic import SyntheticSet

__all__ = ["TIERS", "receiver_bytes", "soft_labels", "tier_of", "with_soft_labels"]

TIERS = {
    "hard": "a class index per image",
    "static": "one stored soft label per training image",
    "regression": "real numbers per training image, learned by squared error",
    "stored": "soft labels of every augmented view over a number of epochs",
    "online": "the receiver holds the teacher and labels views itself",
    "inherited": "the receiver holds a classifier that was trained on all real images",
}


def tier_of(syn: SyntheticSet, labels: str = "auto") -> str:
    """Return the tier a student uses, given what a protocol says about labels."""
    return "hard" if labels == "hard" else syn.label_tier


def receiver_bytes(
    syn: SyntheticSet, tier: str, *, epochs: int = 0, teacher: Network | None = None, held: int = 0
) -> int:
    """Return the bytes a receiver needs under a tier: images, transform, weights and labels.

    Args:
        syn: the artifact. tier: one of :data:`TIERS`.
        epochs: epochs of views with labels ("stored"). teacher: what the receiver holds ("online").
        held: bytes of the classifier, and of whatever comes with it ("inherited").

    Raises:
        InputError: an unknown tier, or one without what it needs.
    """
    if tier not in TIERS:
        raise InputError(f"tier is {tier!r}{nearest(tier, TIERS)}")
    if tier == "stored" and epochs < 1:
        raise InputError(f"epochs is {epochs} for tier 'stored'; use the number of labelled epochs")
    if tier == "online" and teacher is None:
        raise InputError("teacher is None for tier 'online'; give the network that labels")
    if tier == "inherited" and held < 1:
        raise InputError(f"held is {held} for tier 'inherited'; give the bytes of the classifier")
    told = [own for own in (syn.soft_labels, syn.regression_targets) if own is not None]
    stored = sum(own.nbytes for own in told)
    soft = 4 * syn.num_classes * len(syn.decoded()[0])  # float32, one per training image
    taught = sum(value.nbytes for value in teacher.state_dict().values()) if teacher else 0
    extra = {
        "hard": 0,
        "static": stored or soft,
        "regression": stored,
        "stored": soft * epochs,
        "online": taught,
        "inherited": held,
    }
    return syn.nbytes - stored + extra[tier]


def soft_labels(
    teachers: Sequence[Network],
    images: Tensor,
    transform: Transform,
    *,
    temperature: float = 1.0,
    counts: Sequence[int] | None = None,
    tau: float = 1.0,
    device: str = "cpu",
) -> Tensor:
    """Return softmax((z - τ log π) / T), the mean over teachers, float32 (n, K) on the CPU.

    Args:
        teachers: networks trained on the real set. images: (n, c, h, w), RGB 0-1.
        transform: what the teachers were trained behind.
        temperature: T; above 1 flattens.
        counts: real training images per class, to take a long tail's prior π out of plainly trained
            teachers (Menon et al., ICLR 2021, eq. 9); None leaves the logits as they are.
        tau: τ, how much of the prior.

    Raises:
        InputError: no teacher, or a temperature that is not positive.
    """
    if not teachers:
        raise InputError("teachers is empty; give at least one network")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; use a positive number")
    total = torch.zeros(len(images), teachers[0].classifier.out_features)
    for teacher in teachers:
        logits = predict(teacher, images, transform, device=device).cpu()
        logits = logits if counts is None else adjust(logits, counts, tau)
        total += (logits.float() / temperature).softmax(1)
    return total / total.sum(1, keepdim=True)


def with_soft_labels(
    syn: SyntheticSet,
    teachers: Sequence[Network],
    *,
    temperature: float = 1.0,
    counts: Sequence[int] | None = None,
    tau: float = 1.0,
    device: str = "cpu",
) -> SyntheticSet:
    """Return the artifact with a teacher's soft label for every training image (tier "static").

    The teachers see images behind the artifact's own transform. A tiled artifact is decoded first,
    because a label belongs to one training image; that costs bytes, which the score shows.
    Arguments and errors are those of :func:`soft_labels`.
    """
    images, labels, _, weights = syn.decoded()
    soft = soft_labels(
        teachers,
        images,
        syn.transform,
        temperature=temperature,
        counts=counts,
        tau=tau,
        device=device,
    )
    facts = {
        "teachers": len(teachers),
        "temperature": temperature,
        "adjusted": counts is not None,
        "tau": tau if counts is not None else None,
    }
    return replace(
        syn,
        images=images,
        labels=labels,
        weights=weights,
        decode=canvas_spec(),
        soft_labels=soft,
        provenance={**syn.provenance, "soft_labels": facts},
    )
