"""The real half of distribution matching, computed once and cached.

What a matching step needs of the real data (class means of an embedding, or the features
themselves) depends on a network, an augmentation and frequencies, but never on the synthetic
images. A :class:`RealView` is one such triple, with what is kept of it; the synthetic batch
re-applies the view's own augmentation, so the two sides stay Siamese. Policies:

* ``rolling``: a window of views; every ``refresh`` steps the oldest leaves and a new one enters.
* ``fixed``: the first ``entries`` views for the whole run, each used once per pass.
* ``features``: un-augmented features per network kept in half precision; the embedding (fresh
  frequencies every step) is applied to them at each step.
* ``fresh``: nothing is kept; a new view from ``batch_real`` images per class at every step, as
  the methods were published.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from potstill.data import DSA, ImageSet
from potstill.experts.pool import fingerprint
from potstill.match.mmd import by_class
from potstill.match.spectral import SegmentMean
from potstill.networks.parts import Networks
from potstill.networks.real_views import (
    ClassFeatures,
    ClassMeans,
    Embedding,
    FeatureBank,
    KeptFeatures,
    RealView,
)
from potstill.networks.view_draws import RealStatistics, ViewDraws
from potstill.run import Run, StorageError, logger
from potstill.run.cache import Cached, key_facts
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import Portion, cuts

__all__ = ["RealSide"]

_DISK_LIMIT = 8 << 20  # bytes: tables are stored for reuse and resume, feature banks are not
_NONE = torch.empty(0, 0)  # frequencies of what is not projected


class RealSide:
    """Views of the real side, built on first use, kept in memory and on disk.

    Args:
        networks: through what both sides are seen, at unit length if ``normalize``.
        embedding: what is averaged over a class; its facts are part of the cache key.
    """

    def __init__(
        self,
        real: ImageSet,
        networks: Networks,
        run: Run,
        statistics: RealStatistics,
        dsa: DSA | None,
        embedding: Embedding,
        *,
        normalize: bool = False,
    ) -> None:
        self.real, self.networks, self.run = real, networks, run
        self.policy, self.statistics = statistics.real_side, statistics
        self.draws = ViewDraws(real, run, statistics, networks.members, dsa)
        self.dsa = self.draws.dsa
        self.embedding, self.normalize = embedding, normalize
        known = key_facts(
            "realside-4",  # raise it when networks, augmentation or embeddings change
            run,
            real.checksum,
            pool=networks.key,
            transform=fingerprint(networks.transform),
            normalize=normalize,
            members=networks.members,
            **self.draws.facts,
            **embedding.facts,
        )
        self.cached = Cached(run.cache, "realside", known, f"{networks.key} on {real.source}")
        self.built = 0
        self.seconds_saved = 0.0  # what the tables read from the cache once took
        self._fits = Portion("images", "a network's pass over the real set")
        self._rows = Portion("rows", "class means of the real set's features")
        self._kept: dict[int, Any] = {}  # what there is of a view, by its number
        self._warned = False
        self._image_bytes: int | None = None

    @property
    def keeps(self) -> bool:
        """Whether single features are kept, not their class means."""
        return self.embedding.keeps_features or self.policy == "features"

    def views(self, step: int) -> Iterator[Any]:
        """Yield the views of a step: ClassFeatures if the embedding keeps features, or ClassMeans.

        The frequencies are not kept with it: T x d floats would dwarf the table they belong to.
        """
        if self.policy == "rolling":  # views that have left the window
            for old in [n for n in self._kept if n < step // self.statistics.refresh]:
                del self._kept[old]
                (self.cached.folder / _name(old)).unlink(missing_ok=True)  # never looked at again
        for number in self.draws.numbers(step):
            view = self._kept.get(number) or self._build(number)
            if isinstance(view, FeatureBank):
                yield self._embedded(view, step)
            elif isinstance(view, ClassMeans):
                yield replace(view, frequencies=self._frequencies(number))
            else:
                yield view

    def at(self, step: int) -> Any:
        """Return the first view of a step."""
        return next(self.views(step))

    def bank(self, step: int) -> FeatureBank:
        """Return the features behind the view of a step, under the policy that keeps them."""
        return self._kept[self.draws.numbers(step)[0]]

    def _frequencies(self, number: int) -> Tensor:
        return self.embedding.frequencies(number, self.networks.dim)

    def _build(self, number: int) -> RealView:
        if self.policy == "fresh":
            self._kept.clear()
        plan = RealView(number, self.draws.augment(number))
        view: RealView = self._read(plan) or self._computed(plan)
        if isinstance(view, KeptFeatures):
            self._make_room(view.features.nbytes)
        self._kept[number] = view
        return view

    def _make_room(self, size: int) -> None:
        """Let the oldest feature banks go beyond half the memory budget; they are built again."""
        most = max(1, self.run.budget.kept // size)
        if len(self._kept) >= most and not self._warned:
            self._warned = True
            logger.warning(
                "%d feature banks of %.2f GB exceed half of memory_gb = %g; some are built again "
                "and again; lower entries to %d or raise memory_gb",
                self.statistics.entries, size / 1e9, self.run.memory_gb, most,
            )  # fmt: skip
        while len(self._kept) >= most:
            del self._kept[next(iter(self._kept))]

    @torch.no_grad()
    def _computed(self, plan: RealView) -> RealView:
        self.built += 1
        began, classes = time.monotonic(), self.real.num_classes
        frequencies = _NONE if self.keeps else self._frequencies(plan.number)
        positions = self.draws.positions(plan.number)
        labels = self.real.labels[positions].to(self.run.device)
        mean, kept = SegmentMean(classes), []
        for rows in cuts(len(positions), self._chunk(int(positions[0]))):
            images = self.draws.images(plan.number, positions, rows)
            look = partial(self._values, view=plan, frequencies=frequencies)
            values = self._fits.over(look, images, labels[rows])
            if self.keeps:
                kept.append(values)
            else:
                mean.add(values, labels[rows])
        if self.embedding.keeps_features:
            stack, mask = by_class(torch.cat(kept), labels, classes)
            return ClassFeatures(plan.number, plan.augment, stack, mask)
        if self.keeps:
            return FeatureBank(plan.number, plan.augment, torch.cat(kept), labels)
        view = ClassMeans(plan.number, plan.augment, mean.mean(), _NONE)
        self._write(view, time.monotonic() - began)
        return view

    def features(self, images: Tensor, labels: Tensor, view: RealView) -> Tensor:
        """Features (n, d) of RGB images (n, c, h, w) of these classes, on either side of a view."""
        extractor = self.networks.at(view.number)
        augment = self.draws.of_images(view.augment, labels)
        return extractor.features(images, self.dsa, augment, normalize=self.normalize)

    def _values(
        self, images: Tensor, labels: Tensor, view: RealView, frequencies: Tensor
    ) -> Tensor:
        """What is kept, or averaged over a class, of each image: features or embedding (n, q)."""
        features = self.features(images, labels, view)
        if self.embedding.keeps_features:
            return features
        return features.half() if self.keeps else self.embedding.embed(features, frequencies)

    def _chunk(self, position: int) -> int:
        """Real images per pass: what the caches like on a CPU, an eighth of the budget on a GPU."""
        if not self.run.on_gpu:
            return CPU_CHUNK
        if self._image_bytes is None:
            image = self.real.batch(torch.tensor([position]), self.run.device)
            self._image_bytes = self.networks.at(0).image_bytes(image)
        return max(CPU_CHUNK, min(4096, self.run.budget.real_pass // self._image_bytes))

    @torch.no_grad()
    def _embedded(self, bank: FeatureBank, step: int) -> ClassMeans:
        """Return the class means of a bank at this step's frequencies."""
        frequencies = self._frequencies(step)
        mean, embed = SegmentMean(self.real.num_classes), self.embedding.embed
        for rows in cuts(len(bank.features), 2048):
            values = self._rows.over(lambda z: embed(z.float(), frequencies), bank.features[rows])
            mean.add(values, bank.labels[rows])
        return ClassMeans(bank.number, bank.augment, mean.mean(), frequencies)

    def _read(self, plan: RealView) -> ClassMeans | None:
        """The class means of a view, where an earlier run has left them."""
        if self.policy == "fresh" or self.keeps:
            return None
        found = self.cached.recall(
            _name(plan.number),
            "making it again",
            lambda tensors, facts: (tensors["table"], float(facts["seconds"])),
        )
        if found is None:
            return None
        self.seconds_saved += found[1]
        return ClassMeans(plan.number, plan.augment, found[0].to(self.run.device), _NONE)

    def _write(self, view: ClassMeans, seconds: float) -> None:
        if self.policy == "fresh" or view.table.nbytes > _DISK_LIMIT:
            return
        try:
            self.cached.save(_name(view.number), {"table": view.table}, {}, seconds)
        except StorageError as error:  # a cache may fail without harm
            if not self._warned:
                logger.warning("%s; going on without this cache", error)
            self._warned = True


def _name(number: int) -> str:
    return f"{number:06d}.safetensors"
