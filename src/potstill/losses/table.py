"""What is done about an uneven class prior: one table for every network trained on real images.

Pools, experts, heads, students and references over all real images choose a row by its name. A row
says which loss is descended on, how an epoch is drawn, how images are mixed and how the finished
classifier is corrected; the rest of a training is its owner's. Losses stand in
:mod:`potstill.losses.classification`, samplers and mixing in :mod:`potstill.nets.feed`, corrections
in :mod:`potstill.nets.post_hoc`, trainings in several stages in :mod:`potstill.experts.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from potstill.losses.classification import (
    Deferred,
    Loss,
    Scheduled,
    balanced_softmax,
    class_balanced,
    cross_entropy,
    effective_weights,
    focal,
    ldam,
    logit_adjusted,
    weighted,
)

__all__ = ["LOSSES", "REMEDIES", "Remedy", "priors", "told"]

Counts = Sequence[int] | Tensor


def _deferred(loss: Loss, counts: Counts) -> Deferred:
    return Deferred(loss, weighted(loss, effective_weights(counts)))


LOSSES: dict[str, Callable[[Counts], Loss | Scheduled]] = {
    "plain": lambda counts: cross_entropy,
    "balanced_softmax": balanced_softmax,
    "logit_adjusted": logit_adjusted,
    "effective_number": class_balanced,
    "focal": lambda counts: focal(),
    "ldam": ldam,
    "drw": lambda counts: _deferred(cross_entropy, counts),
    "ldam_drw": lambda counts: _deferred(ldam(counts), counts),
}


@dataclass(frozen=True)
class Remedy:
    """A row of the table."""

    says: str  # for --help and protocols
    loss: str = "plain"  # of LOSSES
    sampling: str = "shuffled"  # of Training and HeadTraining
    mixing: str = "none"  # of Training
    post_hoc: str = "none"  # of potstill.nets.post_hoc
    left: float = 1.0  # power of the class prior that the classifier still has in it
    stages: str = ""  # of potstill.experts.recipes, which then says all that stands above

    def loss_for(self, counts: Counts) -> Loss | Scheduled:
        """Return the loss on a set with ``counts`` images per class (C,)."""
        return LOSSES[self.loss](counts)


REMEDIES: dict[str, Remedy] = {
    "plain": Remedy("cross-entropy on the images as they come"),
    "balanced": Remedy("class-balanced sampling", sampling="balanced", left=0),
    "class_aware": Remedy(
        "classes in turn, four images each, until the largest is through (OLTR, CVPR 2019)",
        sampling="cyclic",
        left=0,
    ),
    "sqrt": Remedy("classes drawn as the square root of their size", sampling="sqrt", left=0.5),
    "progressive": Remedy(
        "from sampling images to sampling classes over the epochs (Kang et al., ICLR 2020, eq. 3)",
        sampling="progressive",
        left=0,
    ),
    "balanced_softmax": Remedy(
        "logits plus log class size in training (Ren et al., NeurIPS 2020)",
        loss="balanced_softmax",
        left=0,
    ),
    "logit_adjusted": Remedy(
        "logits plus log class prior in training (Menon et al., ICLR 2021, eq. 10)",
        loss="logit_adjusted",
        left=0,
    ),
    "effective_number": Remedy(
        "loss weighted by the effective number of images (Cui et al., CVPR 2019)",
        loss="effective_number",
        left=0,
    ),
    "focal": Remedy("focal loss (Lin et al., ICCV 2017)", loss="focal"),
    "ldam": Remedy("margins as size^-1/4 (LDAM, Cao et al., NeurIPS 2019)", loss="ldam"),
    "drw": Remedy("effective-number weights in the last fifth of the epochs", loss="drw", left=0),
    "ldam_drw": Remedy("ldam with the weights of drw", loss="ldam_drw", left=0),
    "remix": Remedy("mixup with labels for the tail (Chou et al., ECCVW 2020)", mixing="remix"),
    "remix_drw": Remedy("remix with the weights of drw", loss="drw", mixing="remix", left=0),
    "post_hoc": Remedy(
        "plain, then biases minus log class prior (Menon et al., eq. 9)",
        post_hoc="prior_subtraction",
        left=0,
    ),
    "tau_norm": Remedy(
        "plain, then class weights by their norm (Kang et al.)", post_hoc="tau_norm", left=0
    ),
    "lws": Remedy("plain, then one learnt scale per class (Kang et al.)", post_hoc="lws", left=0),
    "crt": Remedy(
        "plain, then a new classifier on balanced features (Kang et al.)", post_hoc="crt", left=0
    ),
    "ncm": Remedy("plain, then the nearest class mean (Kang et al.)", post_hoc="ncm", left=0),
    "lws_trained": Remedy("lws by descent on fresh views, as published", stages="lws", left=0),
    "crt_trained": Remedy("crt by descent on fresh views, as published", stages="crt", left=0),
    "weight_balancing": Remedy(
        "strong weight decay, then a class-balanced classifier with MaxNorm (Alshammari et al., "
        "CVPR 2022)",
        stages="weight_balancing",
        left=0,
    ),
    "mislas": Remedy(
        "mixup, then a classifier on label-aware smoothing (Zhong et al., CVPR 2021)",
        stages="mislas",
        left=0,
    ),
    "glmc": Remedy(
        "two mixtures that should look alike, the loss from plain to re-weighted (GLMC, Du et al., "
        "CVPR 2023)",
        stages="glmc",
        left=0.1,  # batches between n and n^0.8 under weights n^-0.8
    ),
}


def priors(*, mixing: bool = True, post_hoc: bool = True, stages: bool = True) -> tuple[str, ...]:
    """Return the names of the rows, without those that mix images, correct or go in stages."""
    return tuple(
        name
        for name, row in REMEDIES.items()
        if (mixing or row.mixing == "none")
        and (post_hoc or row.post_hoc == "none")
        and (stages or not row.stages)
    )


def told(names: Sequence[str]) -> str:
    """Return what rows do, in one text for a flag."""
    return "what is done about uneven classes: " + "; ".join(
        f"{name}: {REMEDIES[name].says}" for name in names
    )
