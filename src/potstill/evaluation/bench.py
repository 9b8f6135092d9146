"""The bench: one artifact and one protocol, and everything that is measured beside each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potstill import __version__
from potstill.canvas import tiles_per_image
from potstill.data import ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.evaluation.cached import remembered
from potstill.evaluation.examples import (
    distinct_images,
    mosaic_views,
    random_examples,
    real_examples,
    synthetic_examples,
)
from potstill.evaluation.labels import tier_of
from potstill.evaluation.metrics import mean_std, overall, summary
from potstill.evaluation.protocol import Protocol
from potstill.evaluation.record import Result
from potstill.evaluation.references import is_even, reference
from potstill.evaluation.student import machine_options, train_students, updates_of
from potstill.evaluation.teaching import Teaching
from potstill.nets import Examples
from potstill.run import InputError, Run
from potstill.run.cache import key_facts
from potstill.synthetic import SyntheticSet
from potstill.synthetic.iterates import load_iterate, step_of
from potstill.synthetic.tensors import checksum

__all__ = ["Bench", "Beside", "Other", "Result", "tiles_per_side"]


Other = SyntheticSet | Callable[[], Examples]  # a set, or how to get real images with labels


def tiles_per_side(syn: SyntheticSet) -> int:
    """Return how many training images share a row of a stored image's pixels; 1 for plain ones."""
    return int(syn.decode.get("factor", 1))


@dataclass(frozen=True, eq=False)
class Beside(ABC):
    """One artifact under one protocol; a student is a network's name, or a backbone."""

    syn: SyntheticSet
    train: ImageSet
    test: ImageSet
    protocol: Any
    run: Run

    @property
    def drawn_from(self) -> ImageSet:
        """Where random real images come from."""
        return self.train

    @property
    @abstractmethod
    def tier(self) -> str:
        """Label tier of the students."""

    @abstractmethod
    def artifact(self, syn: SyntheticSet, student: Any, runs: int) -> Result:
        """Score the artifact, or a view of it."""

    @abstractmethod
    def instead(self, facts: dict[str, Any], what: Other, student: Any, runs: int) -> Result:
        """Score something in the artifact's place, cached by ``facts``."""

    @abstractmethod
    def all_real(self, what: str, student: Any, runs: int) -> Result:
        """Score all real images as the reference ``what``: "full" or "ceiling"."""

    def eight_bit(self, student: Any, runs: int, result: Result) -> Result:
        """Score the 8-bit view; real images are their own, so nothing is trained for them."""
        view = self.syn.quantized()
        same = torch.equal(view.images.cpu(), self.syn.decoded()[0].cpu())
        return result if same else self.artifact(view, student, runs)

    def start(self, student: Any, runs: int) -> Result | None:
        """Score the images and labels before step 0; None where there were none.

        Students are those of the artifact, its learned step size included.
        """
        first = self.syn.start
        if first is None:
            return None
        return self.instead({"what": "start", "start": first.checksum}, first, student, runs)

    def random(self, student: Any, runs: int) -> Result:
        """Score one random real subset (per seed) of the same counts, behind the same transform."""
        counts, real = self.syn.counts, self.drawn_from

        def examples() -> Examples:
            return random_examples(real, counts, self.syn.transform, self.run)

        result = self.instead({"what": "random", "counts": counts}, examples, student, runs)
        return result | {"images": distinct_images(real, counts)}

    def mosaic(self, student: Any, runs: int) -> Result | None:
        """Score random real images at equal storage; None where a stored image is one image."""
        counts, held = self.syn.counts, tiles_per_image(self.syn.decode)
        if held == 1:
            return None
        how: dict[str, Any] = {"factor": tiles_per_side(self.syn)}
        if self.syn.decode["formation"] == "subsampled":
            how["formation"] = "subsampled"

        def examples() -> Examples:
            images, labels = mosaic_views(self.drawn_from, counts, self.run, **how)
            return Examples(images, labels, self.syn.transform)

        return self.instead(
            {"what": "mosaic", "counts": counts, **how}, examples, student, runs
        ) | {
            "images": distinct_images(self.drawn_from, [held * n for n in counts]),
            "views": held,
        }

    def whole(self, student: Any, runs: int) -> tuple[Result, Result]:
        """Score all real images: "full" and "ceiling", whatever the artifact is like."""
        plain = self.all_real("full", student, runs)
        even = is_even(self.train.counts) and self.protocol.prior == "plain"
        return plain, plain if even else self.all_real("ceiling", student, runs)

    def kept(self, kind: str, student: str, compute: Callable[[], Result], **facts: Any) -> Result:
        """Return what was measured for the same facts before, or measure it and keep it."""
        known = key_facts(
            kind, self.run, self.train.checksum, threads=False,
            version=__version__, test=self.test.checksum, **facts,
        )  # fmt: skip
        what = f"{facts['what']}, {student} on {self.train.source}"
        return remembered(self.run, known, what, compute)


@dataclass(frozen=True, eq=False)
class Bench(Beside):
    """What all students of one evaluation share; a student is the name of a network."""

    protocol: Protocol
    rest: ImageSet  # train without what is held out under selection "val"
    watch: ImageSet | None
    teaching: Teaching | None = None  # who labels what students see
    # who labels whole images, where what students see of the artifact are tiles
    of_whole: Teaching | None = None

    @property
    def drawn_from(self) -> ImageSet:
        """All that is not held out."""
        return self.rest

    @property
    def tier(self) -> str:
        """Label tier of the students."""
        return tier_of(self.syn, self.protocol.labels)

    def measure(
        self, examples: Examples, protocol: Protocol, network: str, runs: int, label: str
    ) -> Result:
        """Train students by ``protocol.training`` and condense their accuracies."""
        outcome = train_students(
            examples, protocol.training, protocol, network=network, test=self.test, runs=runs,
            run=self.run, watch=self.watch, label=f"{runs} x {network} on {label}",
        )  # fmt: skip
        result: Result = summary(
            outcome.chosen, self.test.counts, self.train.groups, self.train.counts,
            outcome.calibration,
        )  # fmt: skip
        result["classifier_norms"] = [round(v, 5) for v in outcome.norms.mean(0).tolist()]
        result["updates"] = updates_of(examples, protocol.training.under(protocol.prior))
        if protocol.looks_between:
            result["last"] = mean_std(overall(outcome.last, self.test.counts))
            result["epochs"] = list(outcome.epochs)
        return result

    def artifact(self, syn: SyntheticSet, student: str, runs: int) -> Result:
        """Score the artifact, or a view of it."""
        training = self.protocol.training_for(self.syn.ipc, syn.syn_lr)  # a view's ipc may differ
        protocol = replace(self.protocol, training=training)
        examples = self.taught(synthetic_examples(syn, protocol.labels))
        soft = examples.told or (examples.targets.ndim == 2 and not examples.regression)
        if protocol.loss == "kl" and not soft:
            raise InputError("loss is 'kl' but the artifact has no soft labels; use loss=auto")
        if protocol.loss == "logits" and not examples.told:
            raise InputError(
                "loss is 'logits' but the artifact has no labels of views; relabel it with views, "
                "or use loss=auto"
            )
        if protocol.temperature != 1 and not soft:
            raise InputError(
                f"temperature is {protocol.temperature:g} but the artifact has no soft labels; use "
                "temperature=1"
            )
        return self.measure(examples, protocol, student, runs, "the synthetic set")

    def taught(self, examples: Examples) -> Examples:
        """Return ``examples`` with the labels of the teacher, if there is one."""
        if self.teaching is None:
            return examples
        return replace(examples, teacher=self.teaching.logits)

    def best_iterate(self, network: str, iterates: Sequence[Path]) -> Result:
        """Score every iterate and the artifact with one student each; return the best on the test.

        This is how LAD and DATM are published (released code, ``num_eval: 1``). Each look has a
        student of its own; the earlier of two equal looks is best. An iterate that is the artifact
        itself is not looked at twice.
        """
        looks: list[tuple[float, int | None, Result]] = []
        final = self.syn.checksum
        for file in iterates:  # a damaged one is found before any student is trained
            load_iterate(file, self.syn)
        for path in [*iterates, None]:
            step = None if path is None else step_of(path)
            syn = self.syn if path is None else load_iterate(path, self.syn)
            if path is not None and syn.checksum == final:
                continue
            seed = self.run.generator("iterate", step or 0).initial_seed()
            bench = replace(self, run=self.run.with_(seed=seed))
            result = bench.artifact(syn, network, 1)
            looks.append((result["accuracy"]["mean"], step, result))
        best = max(looks, key=lambda look: look[0])
        facts = {
            "best": best[1],  # None: the last
            "looks": len(looks),
            "accuracies": {"last" if step is None else str(step): mean for mean, step, _ in looks},
        }
        return {**best[2], "iterates": facts}

    def instead(self, facts: dict[str, Any], what: Other, student: str, runs: int) -> Result:
        """Score something in the artifact's place, under its training and its teacher."""
        own, how = self.protocol, self.protocol.reference
        learned = what.syn_lr if isinstance(what, SyntheticSet) else None
        how = replace(how, training=own.training_for(self.syn.ipc, learned))
        whole = facts["what"] == "random"
        bench = replace(self, teaching=self.of_whole) if whole and self.of_whole else self
        if bench.teaching is not None:
            facts = facts | {"teaching": bench.teaching.facts}

        def compute() -> Result:
            if isinstance(what, SyntheticSet):
                return replace(self, protocol=own.reference).artifact(what, student, runs)
            title = "random real images" if whole else "random real mosaics"
            return self.measure(bench.taught(what()), how, student, runs, title)

        result = self.cached(facts, how, student, runs, compute)
        if self.teaching is not None:
            result = {**result, "label_tier": self.teaching.tier}
        return result if own.reference is own else {**result, "protocol": own.reference.to_json()}

    def all_real(self, what: str, student: str, runs: int) -> Result:
        """Train on all real images, whatever the artifact is like."""
        protocol = reference(what, self.protocol, len(self.train))
        transform = Normalize.fit(self.train)

        def compute() -> Result:
            examples = real_examples(self.train, transform)
            label = f"all real images, {protocol.prior}"
            return self.measure(examples, protocol, student, runs, label)

        result = self.cached({"what": what}, protocol, student, runs, compute, transform)
        return {**result, "protocol": protocol.to_json(), "images": len(self.train)}

    def cached(
        self, facts: dict[str, Any], protocol: Protocol, network: str, runs: int,
        compute: Callable[[], Result], transform: Transform | None = None,
    ) -> Result:  # fmt: skip
        """Return what was measured for the same facts before, or measure it and keep it."""
        transform = transform or self.syn.transform
        known = {
            "shape": self.test.shape,
            "transform": checksum(transform.to_tensors(), {"kind": transform.kind}),
            "protocol": protocol.hash,
            "network": network,
        }
        if self.run.on_gpu:  # what trains the students there, see student.machine_options
            known |= machine_options(self.run)
        return self.kept("score-2", network, compute, runs=runs, **known, **facts)
