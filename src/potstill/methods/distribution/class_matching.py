"""The step that DM, IDM, IID, M3D, NCFM, SDM and CSDM share.

One network looks at all synthetic images of some classes and the result is compared, class by
class, with the cached real side; NCFM, SDM and CSDM also keep the images where a trained classifier
expects them (calibration, DANCE), IID keeps those of a class together. A method says how features
become a class statistic and how two statistics differ: its :class:`Comparison`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.labels import LabelSpec
from potstill.losses import REMEDIES, adjust, cross_entropy
from potstill.match.spectral import segment_mean
from potstill.methods.labelled import LabelledObjective
from potstill.networks import Networks
from potstill.networks.real_statistics import RealSide
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import InputError, Run
from potstill.run.fields import NotNegative, OneOf
from potstill.run.memory import cuts
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = [
    "CANVASES",
    "LABELS",
    "TRAINED",
    "Calibration",
    "ClassMatching",
    "Comparison",
    "FurtherTerm",
    "Removed",
]

CANVASES = ("pixels", "tiled", "multi-formation", "subsampled", "frequency")
LABELS = ("hard", "taught")
TRAINED = ("pool", "snapshots")  # networks that can calibrate
Removed = Annotated[str, OneOf("adjusted", "none")]


class Comparison:
    """What is averaged over a class, and how two averages differ."""

    keeps_features = False  # whether single real features are needed instead of class means

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-like facts that determine :meth:`embed`, for the cache of the real side."""
        return {"embed": "mean"}

    def frequencies(self, number: int, dim: int) -> Tensor:
        """Return the frequencies (T, d) of a view; none by default."""
        return torch.empty(0, dim)

    def embed(self, features: Tensor, frequencies: Tensor) -> Tensor:
        """Features (n, d) -> (n, q) whose class means are compared."""
        return features

    def class_distance(
        self, view: Any, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distance of each class in [first, last), (k,), and facts per class.

        ``view`` is a ClassMeans, or a ClassFeatures where features are kept. ``labels`` (n,) of the
        synthetic ``features`` (n, d) count from 0 = ``first``.
        """
        raise NotImplementedError


class FurtherTerm:
    """What a method asks of the images beside the match, behind networks of its own."""

    def terms(self, step: int, number: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield the terms of a step whose last view has this number."""
        raise NotImplementedError

    def image_bytes(self, image: Tensor) -> int:
        """Return the bytes kept for one image (1, c, h, w), where it may be more than the match."""
        return 0


class ClassMatching(LabelledObjective):
    """L = sum_c weight * distance_c, and a further term where there is one."""

    def __init__(
        self,
        real: ImageSet,
        canvas: Canvas,
        networks: Networks,
        run: Run,
        comparison: Comparison,
        *,
        views: SiameseViews,
        statistics: RealStatistics,
        normalize: bool = False,
        weight: float = 1.0,
        further: FurtherTerm | None = None,
        labels: LabelSpec | None = None,
    ) -> None:
        if labels is not None:
            self.labeller = labels.labeller(real, canvas.spec, networks.transform, run)
        if run.on_gpu and real.images.nbytes < run.budget.images:
            real = real.to(run.device)
        self.canvas, self.networks, self.comparison = canvas, networks, comparison
        self.weight, self.further = weight, further
        self.side = RealSide(
            real, networks, run, statistics, views.dsa(), comparison, normalize=normalize
        )

    @classmethod
    def of(
        cls,
        method: Any,
        real: ImageSet,
        canvas: Canvas,
        networks: Networks,
        run: Run,
        comparison: Comparison,
        **more: Any,
    ) -> Self:
        """Return the objective of a method with the parts ``views``, ``statistics`` and labels."""
        parts = {name: getattr(method, name) for name in ("views", "statistics", "labels")}
        return cls(real, canvas, networks, run, comparison, **parts, **more)

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Matching, then calibration (NCFM sec. 4.3; DANCE sec. 3.3) or the like, once a step."""
        weight = self.weight / self.side.statistics.views_per_step
        for view in self.side.views(step):
            for part in cuts(canvas.classes, piece):
                first, last = part.start, part.stop
                images, labels = canvas.decode(first, last)
                features = self.side.features(images, labels, view)
                values, facts = self.comparison.class_distance(
                    view, features, labels - first, first, last
                )
                yield Term("match", values * weight, first, facts)
        if self.further is not None:
            yield from self.further.terms(step, view.number, canvas, piece)

    def after(self, step: int, canvas: Canvas) -> None:
        """Networks that move learn from the canvas."""
        if self.networks.moves:
            targets = one_hot(canvas.labels, canvas.classes).float()
            targets = targets.repeat_interleave(canvas.views, dim=0)
            self.networks.after(step, canvas, targets, self.side.dsa)

    def image_bytes(self) -> int:
        """Measured with one image."""
        image = self.canvas.pictures()[:1]
        asked = 0 if self.further is None else self.further.image_bytes(image)
        return max(self.networks.at(0).image_bytes(image), asked)

    @property
    def seconds_saved(self) -> float:  # type: ignore[override]
        """Tables of the real side, and teachers, that an earlier run had left behind."""
        taught = 0.0 if self.labeller is None else self.labeller.seconds_saved
        return self.side.seconds_saved + taught


@dataclass(frozen=True, kw_only=True)
class Calibration(Part):
    """A second term: where a trained classifier expects the images (NCFM; DANCE, IJCAI 2024)."""

    calibration: NotNegative = 1.0  # weight of the cross-entropy under a trained network; 0 = off
    calibration_prior: Removed = "adjusted"  # logits minus log class prior, or "none" as published

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse networks that are not trained."""
        if self.calibration and not method.networks.has_trained:
            raise InputError(
                f"calibration is {self.calibration} and networks is {method.networks.kind!r}, but "
                "it needs trained networks; use calibration=0 or networks=pool"
            )

    def prepared(
        self, real: ImageSet, networks: Networks, dsa: DSA | None, run: Run, trained: str
    ) -> CalibrationTerm | None:
        """Return the term, or None; ``trained`` is the class prior of the networks' training."""
        if not self.calibration:
            return None
        left = REMEDIES[trained].left if self.calibration_prior == "adjusted" else 0.0
        return CalibrationTerm(self.calibration, networks, dsa, run, real.counts, left)


class CalibrationTerm(FurtherTerm):
    """Cross-entropy of a trained network on augmented images, averaged per class.

    Logits are taken minus ``left`` times the log prior of classes of these ``counts``.
    """

    def __init__(
        self,
        weight: float,
        networks: Networks,
        dsa: DSA | None,
        run: Run,
        counts: Sequence[int],
        left: float,
    ) -> None:
        self.weight, self.networks, self.dsa, self.run = weight, networks, dsa, run
        self.counts, self.left = counts, left

    def terms(self, step: int, number: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield the terms of a step under the trained network behind view ``number``."""
        network = self.networks.trained_at(number)
        augment: dict[str, Tensor] = {}
        for part in cuts(canvas.classes, piece):
            first, last = part.start, part.stop
            images, labels = canvas.decode(first, last)
            if self.dsa is not None and not augment:
                draw, size = self.run.generator("calibration", step), images.shape[-2:]
                augment = self.dsa.draw(
                    1, (size[0], size[1]), draw, siamese=True, device=self.run.device
                )
            logits = network.logits(images, self.dsa, augment)
            if self.left:
                logits = adjust(logits, self.counts, self.left)
            losses = segment_mean(
                cross_entropy(logits, labels)[:, None], labels - first, last - first
            )[:, 0]
            facts = {"calibration": losses}
            yield Term("calibration", losses * (self.weight / canvas.classes), first, facts)
