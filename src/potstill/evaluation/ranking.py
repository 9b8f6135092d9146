"""DD-Ranking's scores: what a set is worth beside real images, apart from labels and augmentation.

Li et al., "DD-Ranking", 2025 (formulae of the released package, 0.2.0). With accuracies as shares:

    HLR = acc(all real, hard labels) - acc(set, hard labels)
    IOR = acc(set, its labels) - acc(random real images, as many, same training and labels)
    LRS = m(w IOR - (1 - w) HLR),    m(x) = (e^x - e^-1) / (e - e^-1)
    ARS = m(g (set - random)_augmented + (1 - g) (set - random)_plain)

Small HLR and large IOR, LRS and ARS are good; LRS and ARS lie in [0, 1]. Deviations: the released
package puts percentages into the exponential, which then is no scale at all; chooses epochs and
step sizes on the test set; and draws no random images for classes smaller than the set. Here
accuracies are those of :func:`potstill.evaluate`, and means over classes, so that a test set need
not be balanced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from potstill.evaluation.record import Score, part
from potstill.run import InputError
from potstill.run.fields import Share, check_value

__all__ = ["dd_ranking"]


def dd_ranking(
    score: Score, *, hard: Score | None = None, plain: Score | None = None, weight: float = 0.5
) -> dict[str, float]:
    """Return ``hlr``, ``ior``, ``lrs`` and, where they can be known, ``hlr_ceiling`` and ``ars``.

    Args:
        score: of the set with its labels, with ``full=True`` and the random baseline.
        hard: of the same set under ``labels="hard"``; needed where ``score`` has other labels.
        plain: of the same set, without augmentation and CutMix; gives ``ars``.
        weight: of IOR in LRS, and of augmented students in ARS.

    Returns:
        Shares, not percent. ``hlr_ceiling`` is HLR beside the ceiling on all real images, which a
        long tail does not bias.

    Raises:
        InputError: a score lacks what is needed, or they are of different sets.

    Example:
        >>> from potstill.evaluation import dd_ranking, read_scores
        >>> scores = read_scores("runs/demo")
        >>> [dd_ranking(score) for score in scores if score.full]
        []
    """
    check_value("weight", weight, Share)
    for name, other in (("hard", hard), ("plain", plain)):
        if other is not None and (other.artifact, other.network) != (score.artifact, score.network):
            raise InputError(f"{name} is a score of another set or network; score the same one")
    if hard is None and score.label_tier != "hard":
        raise InputError(
            f"score has labels {score.label_tier!r}, and hard is missing; evaluate the set with "
            "labels=hard, too"
        )
    if plain is not None and _augmented(plain):
        raise InputError(
            "plain is a score with augmentation; use protocol.with_(augment='none', cutmix=0.0)"
        )
    own, random = _share(score.to_json(), "score"), _share(score.random, "random")
    under = _share((hard or score).to_json(), "hard")
    hlr, ior = _share(score.full, "full") - under, own - random
    found = {"hlr": hlr, "ior": ior, "lrs": _scale(weight * ior - (1 - weight) * hlr)}
    if score.ceiling:
        found["hlr_ceiling"] = _share(score.ceiling, "ceiling") - under
    if plain is not None:
        bare = _share(plain.to_json(), "plain") - _share(plain.random, "random of plain")
        found["ars"] = _scale(weight * ior + (1 - weight) * bare)
    return found


def _augmented(score: Score) -> bool:
    training = part(score.protocol, "training")
    return bool(training.get("augment")) or bool(training.get("cutmix"))


def _share(result: Mapping[str, Any] | None, name: str) -> float:
    """Mean over classes as a share of 1."""
    if not result:
        raise InputError(f"score has no {name!r}; evaluate with full=True and the random baseline")
    known = part(result, "balanced") or part(result, "accuracy")
    return float(known["mean"]) / 100


def _scale(value: float) -> float:
    """From [-1, 1] to [0, 1]."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))
