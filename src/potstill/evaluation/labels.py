"""Label tiers: what labels a receiver trains with, and what they weigh.

Scores of different tiers are not comparable: a soft label carries what a teacher learned from the
whole real set, and an online teacher *is* that knowledge. So tier and bytes stand beside every
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from potstill.canvas import views_per_image
from potstill.data.views import Views
from potstill.experts.heads import Head
from potstill.experts.labelling import (
    HardShare,
    logits_of,
    mixed,
    shift_for,
    soft_labels,
    softened,
)
from potstill.labels import Projection, ViewLabels
from potstill.nets import Network
from potstill.run import InputError, Run, nearest
from potstill.run.fields import check_value
from potstill.synthetic import SyntheticSet

__all__ = [
    "TIERS",
    "receiver_bytes",
    "soft_labels",
    "tier_of",
    "with_projection",
    "with_soft_labels",
    "with_view_labels",
]

TIERS = {
    "hard": "a class index per image",
    "static": "one stored soft label per training image",
    "regression": "real numbers per training image, learned by squared error",
    "stored": "soft labels of every augmented view over a number of epochs",
    "online": "the receiver holds the teacher and labels views itself",
    "projected": "the receiver holds a backbone and is sent the map that labels views on it",
    "inherited": "the receiver holds a classifier that was trained on all real images",
}


_TIER_OF = {"hard": "hard", "soft": "static", "views": "stored", "projected": "projected"}


def tier_of(syn: SyntheticSet, labels: str = "auto") -> str:
    """Return the tier a student uses, given what a protocol says about labels."""
    return syn.label_tier if labels == "auto" else _TIER_OF.get(labels, labels)


def receiver_bytes(syn: SyntheticSet, tier: str, held: int = 0) -> int:
    """Return the bytes a receiver needs under a tier: images, transform, weights and labels.

    Args:
        syn: the artifact. tier: one of :data:`TIERS`.
        held: bytes of what the receiver holds besides: the teacher ("online"), the backbone of a
            projection, or the classifier and whatever comes with it ("inherited").

    Raises:
        InputError: an unknown tier, or one without what it needs.
    """
    if tier not in TIERS:
        raise InputError(f"tier is {tier!r}{nearest(tier, TIERS)}")
    stored = {
        "static": syn.soft_labels,
        "regression": syn.regression_targets,
        "stored": syn.view_labels,
        "projected": syn.projection,
    }
    sizes = {name: 0 if own is None else int(own.nbytes) for name, own in stored.items()}
    if tier in sizes and not sizes[tier]:
        raise InputError(f"tier is {tier!r}, but the artifact has no labels of it; use another")
    if tier in ("online", "inherited") and held < 1:
        raise InputError(f"held is {held} for tier {tier!r}; give the bytes of the network")
    return syn.nbytes - sum(sizes.values()) + sizes.get(tier, 0) + held


def with_soft_labels(
    syn: SyntheticSet,
    teachers: Sequence[Network],
    *,
    temperature: float = 1.0,
    counts: Sequence[int] | None = None,
    tau: float | str = 1.0,
    hard_share: float = 0.0,
    device: str = "cpu",
) -> SyntheticSet:
    """Return the artifact with a teacher's soft label for every training image (tier "static").

    The teachers see decoded images behind the artifact's own transform. What is stored stays: the
    labels of a tiled set are (n, v, K), one for each of the v training images that a stored image
    decodes to.

    Args:
        teachers, temperature, counts, device: as for :func:`soft_labels`.
        tau: how much of the prior of ``counts`` to take out before the temperature, or a rule:
            "adsa" (:func:`potstill.labels.adsa_tau`) or "even"
            (:func:`potstill.labels.even_shift`), which needs no counts.
        hard_share: S in [0, 1): a label is S times the class plus 1 - S times the soft label.

    Raises:
        InputError: as :func:`soft_labels`, or a share that is out of range.
    """
    check_value("hard_share", hard_share, HardShare)
    images, labels, *_ = syn.decoded()
    said = logits_of(teachers, images, syn.transform, device)
    shift, facts = shift_for(tau, said, labels, counts, temperature)
    soft = mixed(softened(said, temperature, shift), labels, hard_share)
    facts |= {"teachers": len(teachers), "temperature": temperature, "hard_share": hard_share}
    v = views_per_image(syn.decode)
    return replace(
        syn,
        soft_labels=soft if v == 1 else soft.unflatten(0, (len(syn), v)),
        start=None,
        provenance=_unscored(syn) | {"soft_labels": facts},
    )


def with_view_labels(
    syn: SyntheticSet,
    teachers: Sequence[Network],
    run: Run,
    *,
    epochs: int,
    views: Views | None = None,
    cutmix: float = 0.0,
    top: int | None = None,
    counts: Sequence[int] | None = None,
    tau: float | str = 1.0,
) -> SyntheticSet:
    """Return the artifact with labels of the views of so many epochs (tier "stored").

    Args:
        teachers, counts, tau: as for :func:`with_soft_labels`; a receiver chooses the temperature.
        run: seed of what is drawn, device. epochs: E; longer trainings begin again.
        views: crops and flips; by default crops from 0.08 of the area and mirrors, as for ImageNet.
        cutmix, top: see :meth:`potstill.labels.ViewLabels.of`.

    Raises:
        InputError: no teacher, or a number out of range.
    """
    views, device = views or Views(noise=0.0), str(run.device)
    images, labels, *_ = syn.decoded()
    said = logits_of(teachers, images, syn.transform, device) if isinstance(tau, str) else []
    shift, facts = shift_for(tau, said, labels, counts)

    def logits(x: Tensor) -> Tensor:
        return softened(logits_of(teachers, x, syn.transform, device), 1.0, shift).log()

    found = ViewLabels.of(
        images,
        logits,
        epochs,
        lambda purpose, epoch: run.generator(f"labels/{purpose}", epoch),
        views=views,
        cutmix=cutmix,
        top=top,
    )
    facts |= {"teachers": len(teachers), "views": views.facts, "cutmix": cutmix, "top": top}
    told = _unscored(syn) | {"view_labels": facts | {"epochs": epochs}}
    return replace(syn, view_labels=found, provenance=told, start=None)


def with_projection(syn: SyntheticSet, head: Head, backbone: str) -> SyntheticSet:
    """Return the artifact with a head on a backbone that labels any view (tier "projected").

    Args:
        head: of :func:`potstill.experts.heads.train_head`, on the artifact's classes.
        backbone: the name by which a receiver opens the head's backbone.

    Raises:
        InputError: the head's classes are others.
    """
    if head.classes != syn.classes:
        raise InputError("head has other classes than the images; train one for these data")
    own = Projection(head.weight.float(), head.bias.float(), backbone, head.backbone)
    told = _unscored(syn) | {"projection": dict(head.facts)}
    return replace(syn, projection=own, provenance=told, start=None)


def _unscored(syn: SyntheticSet) -> dict[str, Any]:
    """Where a set comes from, without its scores: with other labels they are another set's."""
    return {name: value for name, value in syn.provenance.items() if name != "scores"}
