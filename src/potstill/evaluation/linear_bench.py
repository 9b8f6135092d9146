"""Scores of linear heads on frozen backbones.

For every backbone: heads on the artifact, on its 8-bit view, on a random real subset and on all
real images, all repeats at once on cached features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill import __version__
from potstill.data import ImageSet
from potstill.evaluation.bench import tiles_per_side
from potstill.evaluation.cached import remembered
from potstill.evaluation.metrics import class_accuracy, summary
from potstill.evaluation.probe import Probe
from potstill.evaluation.record import Result, part
from potstill.evaluation.references import is_even, prior_of
from potstill.evaluation.student import distinct_images, mosaic_views, random_rows
from potstill.experts.backbones import backbone_for
from potstill.experts.features import collect_features, image_features
from potstill.losses import REMEDIES
from potstill.nets.backbone import FILE, Backbone
from potstill.nets.head_training import HeadTraining, train_heads
from potstill.nets.post_hoc import correct
from potstill.run import ArtifactError, InputError, Run
from potstill.run.cache import key_facts
from potstill.run.checkpoint import load_state
from potstill.run.records import read_json
from potstill.synthetic import SyntheticSet

__all__ = ["LinearBench"]


def _number(facts: Mapping[str, Any], name: str, default: Any) -> Any:
    """A number from an artifact, which anybody may have written."""
    value = facts.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArtifactError(f"provenance.json has {name} {value!r}; a number is expected")
    return type(default)(value)


@dataclass(frozen=True, eq=False)
class LinearBench:
    """What all backbones of one evaluation share."""

    syn: SyntheticSet
    train: ImageSet
    test: ImageSet
    probe: Probe
    run: Run
    sender: str | None = None  # backbone that distilled, if the artifact does not tell its place

    def open(self, name: str) -> tuple[Backbone, str]:
        """Return the backbone of a name and the name; "same" is the one that distilled.

        Raises:
            InputError: the artifact names none, or this name leads to another now.
        """
        made = part(part(self.syn.provenance, "method"), "fields")
        known = part(self.syn.provenance, "backbone")
        same = name == "same"
        if same:
            name = self.sender or str(made.get("backbone", ""))
            if not name:
                raise InputError(
                    "network is 'same', but no backbone distilled the artifact; name one"
                )
        place = name
        if same and name.startswith("self:"):
            place = self._trained_before(known.get("key")) or name
        mine = name in (made.get("backbone"), self.sender)
        epochs = _number(made, "backbone_epochs", 30) if mine else 30
        flip = _number(made, "flip", 0.5) if mine else self.probe.views.flip
        try:
            backbone = backbone_for(place, self.train, self.run, epochs=epochs, flip=flip)
        except InputError as error:
            if not same:
                raise
            raise InputError(
                f"the backbone that distilled cannot be opened; name it as sender ({error})"
            ) from error
        if same and backbone.key != known.get("key"):
            raise InputError(
                f"backbone is {name!r} with key {backbone.key}, but the artifact was distilled "
                f"with {known.get('key')}; give the folder or name of that one as sender"
            )
        return backbone, name

    def _trained_before(self, key: Any) -> str | None:
        """The folder of a ``self:`` backbone in the cache, whatever machine settings made it."""
        assert self.run.cache is not None
        for path in sorted((self.run.cache / "backbones").glob("*/backbone.json")):
            with suppress(ArtifactError):
                if read_json(path, "").get("key") == key:
                    load_state(path.parent / FILE, unchecked=True)  # a damaged one is none
                    return str(path.parent)
        return None

    def table(self, images: Tensor, backbone: Backbone, heads: int = 1) -> Any:
        """Features of random views of ``images``: stored (V, n, d), or a function of the epoch."""

        def seen(*index: int) -> Tensor:
            draw = self.run.generator("probe/views", *index)
            drawn = self.probe.views.draw(len(images), draw)
            found = image_features(images, backbone, self.probe.views, drawn).half()
            if not bool(torch.isfinite(found).all()):
                raise InputError(
                    f"backbone {backbone.label!r} gives features of the synthetic images that are "
                    "not finite in half precision; use another backbone"
                )
            return found

        if self.probe.stored_views:
            return torch.stack([seen(view) for view in range(self.probe.stored_views)])
        return lambda epoch: torch.stack([seen(epoch, head) for head in range(heads)])

    def measure(
        self,
        backbone: Backbone,
        table: Any,
        targets: Tensor,
        training: HeadTraining,
        runs: int,
        weights: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> Result:
        """Train ``runs`` heads and test each once."""
        row = REMEDIES[self.probe.prior]
        labels = (targets.argmax(1) if targets.ndim == 2 else targets).to(backbone.device)
        weight, bias = train_heads(
            table,
            targets,
            self.test.num_classes,
            training if row.sampling == "shuffled" else replace(training, sampling=row.sampling),
            heads=runs,
            loss=row.loss_for(labels.bincount(minlength=self.test.num_classes)),
            generators=lambda purpose, k, index: self.run.generator(f"probe/{purpose}", k, index),
            weights=weights,
            teacher=teacher,
        )
        if row.post_hoc != "none":
            seen = table(0) if callable(table) else table
            z, y = seen.flatten(0, 1), labels.repeat(len(seen))
            for k in range(runs):
                weight[k], bias[k] = correct(row.post_hoc, weight[k], bias[k], lambda: z, y)
        return self.tested(backbone, lambda z: z @ weight.transpose(1, 2) + bias[:, None])

    def tested(self, backbone: Backbone, logits: Callable[[Tensor], Tensor]) -> Result:
        """Test ``logits``, features (n, d) -> (R, n, C), on clean views of the test set."""
        seen = collect_features(self.test, backbone, self.run, bank=True)
        assert seen.bank is not None
        found = [
            logits(part.to(backbone.device).float()).argmax(-1) for part in seen.bank[0].split(4096)
        ]
        rows = [
            class_accuracy(row, self.test.labels, self.test.num_classes)
            for row in torch.cat(found, 1)
        ]
        return summary(torch.stack(rows), self.test.counts, self.train.groups)

    def artifact(self, syn: SyntheticSet, backbone: Backbone, runs: int) -> Result:
        """Score the artifact, or a view of it."""
        images, hard, soft, weights = syn.decoded()
        if self.probe.labels == "soft" and soft is None:
            raise InputError("labels is 'soft' but the artifact has none; use 'auto' or 'hard'")
        targets = hard if soft is None or self.probe.labels == "hard" else soft
        table = self.table(images, backbone, runs)
        return self.measure(backbone, table, targets, self.probe.training, runs, weights)

    def start(self, backbone: Backbone, runs: int) -> Result | None:
        """Score the images and labels before step 0; None where there were none."""
        first = self.syn.start
        if first is None:
            return None
        facts = {"what": "start", "start": first.checksum}
        return self._remembered(facts, backbone, runs, lambda: self.artifact(first, backbone, runs))

    def random(self, backbone: Backbone, runs: int) -> Result:
        """Score one random real subset (per seed) of the same counts."""
        counts = self.syn.counts
        rows = random_rows(self.train, counts, self.run)

        def compute() -> Result:
            table = self.table(self.train.batch(rows), backbone, runs)
            labels = self.train.labels[rows]
            return self.measure(backbone, table, labels, self.probe.training, runs)

        facts = {"what": "random", "counts": counts}
        return self._remembered(facts, backbone, runs, compute) | {"images": len(rows)}

    def mosaic(self, backbone: Backbone, runs: int) -> Result | None:
        """Score random real images at equal storage; None where a stored image is one image."""
        counts, factor = self.syn.counts, tiles_per_side(self.syn)
        if factor == 1:
            return None

        def compute() -> Result:
            images, labels = mosaic_views(self.train, counts, factor, self.run)
            table = self.table(images, backbone, runs)
            return self.measure(backbone, table, labels, self.probe.training, runs)

        facts = {"what": "mosaic", "counts": counts, "factor": factor}
        return self._remembered(facts, backbone, runs, compute) | {
            "images": distinct_images(self.train, [factor**2 * n for n in counts]),
            "views": factor**2,
        }

    def whole(self, backbone: Backbone, runs: int) -> tuple[Result, Result]:
        """Score all real images: "full" and "ceiling", which have the probe's own training."""

        def under(what: str) -> Result:
            probe = replace(self.probe, prior=prior_of(what, self.probe.prior))
            return replace(self, probe=probe)._whole(what, backbone, runs)

        plain = under("full")
        even = is_even(self.train.counts) and self.probe.prior == "plain"
        return plain, plain if even else under("ceiling")

    def _whole(self, what: str, backbone: Backbone, runs: int) -> Result:
        images = len(self.train)

        def compute() -> Result:
            stats = collect_features(
                self.train,
                backbone,
                self.run,
                views=self.probe.views,
                count=self.probe.full_views,
                bank=True,
            )
            assert stats.bank is not None
            table = stats.bank.to(backbone.device)
            training = self.probe.full_training(images)
            return self.measure(backbone, table, self.train.labels, training, runs)

        result = self._remembered({"what": what}, backbone, runs, compute)
        return result | {"protocol": self.probe.full_json(images, what), "images": images}

    def _remembered(
        self, facts: dict[str, Any], backbone: Backbone, runs: int, compute: Callable[[], Result]
    ) -> Result:
        known = key_facts(
            "probe-2", self.run, self.train.checksum, threads=False,
            version=__version__, test=self.test.checksum, protocol=self.probe.hash,
            backbone=backbone.key, runs=runs, precision=backbone.precision, **facts,
        )  # fmt: skip
        what = f"{facts['what']}, {backbone.label} on {self.train.source}"
        return remembered(self.run, known, what, compute)
