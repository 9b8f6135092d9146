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

from potstill.evaluation.bench import Beside, Other
from potstill.evaluation.labels import tier_of
from potstill.evaluation.metrics import calibration_error, class_accuracy, summary, verdict
from potstill.evaluation.probe import Probe
from potstill.evaluation.record import Result, part
from potstill.evaluation.references import prior_of
from potstill.experts.backbones import backbone_for
from potstill.experts.features import collect_features, image_features
from potstill.losses import REMEDIES
from potstill.nets.backbone import FILE, Backbone
from potstill.nets.head_training import HeadTraining, train_heads
from potstill.nets.post_hoc import correct
from potstill.run import ArtifactError, InputError
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
class LinearBench(Beside):
    """What all backbones of one evaluation share; a student is a head on one of them."""

    protocol: Probe
    sender: str | None = None  # backbone that distilled, if the artifact does not tell its place

    @property
    def tier(self) -> str:
        """Label tier of the heads, which learn nothing richer than soft labels."""
        if self.protocol.labels != "auto":
            return tier_of(self.syn, self.protocol.labels)
        return "hard" if self.syn.soft_labels is None else "static"

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
        flip = _number(made, "flip", 0.5) if mine else self.protocol.views.flip
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
            drawn = self.protocol.views.draw(len(images), draw)
            found = image_features(images, backbone, self.protocol.views, drawn).half()
            if not bool(torch.isfinite(found).all()):
                raise InputError(
                    f"backbone {backbone.label!r} gives features of the synthetic images that are "
                    "not finite in half precision; use another backbone"
                )
            return found

        if self.protocol.stored_views:
            return torch.stack([seen(view) for view in range(self.protocol.stored_views)])
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
        row = REMEDIES[self.protocol.prior]
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
            verdict(logits(part.to(backbone.device).float())) for part in seen.bank[0].split(4096)
        ]
        predicted, sure = (torch.cat(parts, 1).cpu() for parts in zip(*found, strict=True))
        labels = self.test.labels
        rows = [class_accuracy(row, labels, self.test.num_classes) for row in predicted]
        errors = [calibration_error(*pair) for pair in zip(predicted == labels, sure, strict=True)]
        matrix, train = torch.stack(rows), self.train
        return summary(matrix, self.test.counts, train.groups, train.counts, errors)

    def artifact(self, syn: SyntheticSet, student: Backbone, runs: int) -> Result:
        """Score the artifact, or a view of it."""
        images, hard, soft, weights = syn.decoded()
        if self.protocol.labels == "soft" and soft is None:
            raise InputError("labels is 'soft' but the artifact has none; use 'auto' or 'hard'")
        targets = hard if soft is None or self.protocol.labels == "hard" else soft
        table = self.table(images, student, runs)
        return self.measure(student, table, targets, self.protocol.training, runs, weights)

    def instead(self, facts: dict[str, Any], what: Other, student: Backbone, runs: int) -> Result:
        """Score something in the artifact's place, under its training."""

        def compute() -> Result:
            if isinstance(what, SyntheticSet):
                return self.artifact(what, student, runs)
            seen = what()
            table = self.table(seen.images, student, runs)
            return self.measure(student, table, seen.targets, self.protocol.training, runs)

        return self._remembered(facts, student, runs, compute)

    def all_real(self, what: str, student: Backbone, runs: int) -> Result:
        """Train on all real images, as the probe says for them."""
        images = len(self.train)
        probe = replace(self.protocol, prior=prior_of(what, self.protocol.prior))
        bench = replace(self, protocol=probe)

        def compute() -> Result:
            views, count = probe.views, probe.full_views
            stats = collect_features(
                self.train, student, self.run, views=views, count=count, bank=True
            )
            assert stats.bank is not None
            table, training = stats.bank.to(student.device), probe.full_training(images)
            return bench.measure(student, table, self.train.labels, training, runs)

        result = bench._remembered({"what": what}, student, runs, compute)
        return result | {"protocol": probe.full_json(images, what), "images": images}

    def _remembered(
        self, facts: dict[str, Any], backbone: Backbone, runs: int, compute: Callable[[], Result]
    ) -> Result:
        known = {"protocol": self.protocol.hash, "backbone": backbone.key, "runs": runs}
        known |= {"precision": backbone.precision}
        return self.kept("probe-2", backbone.label, compute, **known, **facts)
