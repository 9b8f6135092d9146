"""A pool of networks for matching: each as it began and as it ended after training on the real set.

Matching looks through a point on the segment between the two (DANCE, Zhang et al., IJCAI 2024;
NCFM, Wang et al., CVPR 2025): ``blend`` of the initial and ``1 - blend`` of the trained weights of
the *same* network. The pool is cached on disk by content, so runs that share data and recipe share
their networks, and a killed run goes on within the networks that were in training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.recipes import first_form, train_recipe
from potstill.losses import REMEDIES, priors
from potstill.nets import Network, create_for, parse
from potstill.nets.many import Examples, Training, train_many
from potstill.nets.places import Places
from potstill.nets.post_hoc import correct_
from potstill.run import Run
from potstill.run.cache import Cached, key_facts
from potstill.run.checkpoint import under
from potstill.run.fields import Count, OneOf, check_value

__all__ = ["Pool", "Prior", "train_pool"]

Prior = Annotated[str, OneOf(*priors())]
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Pool:
    """Initial and trained weights of ``len(pool)`` networks of one architecture."""

    network: str
    initial: tuple[State, ...]
    trained: tuple[State, ...]
    key: str  # identifies data, recipe and seed; part of every cache built on the pool
    seconds_saved: float = 0.0  # what training the networks read from the cache once took

    def __len__(self) -> int:
        return len(self.initial)

    def to(self, device: str) -> Pool:
        """Return the pool with all weights on ``device``."""
        initial, trained = (
            tuple({name: value.to(device) for name, value in state.items()} for state in states)
            for states in (self.initial, self.trained)
        )
        return replace(self, initial=initial, trained=trained)

    def blend(self, member: int, share: float) -> State:
        """Return ``share`` of the initial plus ``1 - share`` of the trained weights of one member.

        Buffers and counters that are not floating point come from the trained network.
        """
        first, last = self.initial[member], self.trained[member]
        return {
            name: torch.lerp(last[name], first[name], share)
            if last[name].is_floating_point()
            else last[name]
            for name in last
        }


def fingerprint(transform: Transform) -> str:
    """16 hexadecimal digits over kind and constants of a transform."""
    total = hashlib.sha256(transform.kind.encode())
    for name, value in sorted(transform.to_tensors().items()):
        total.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def _stored(entry: Cached, member: int) -> tuple[State, State, float] | None:
    def read(tensors: State, facts: dict[str, Any]) -> tuple[State, State, float]:
        return under("initial.", tensors), under("trained.", tensors), float(facts["seconds"])

    return entry.recall(_name(member), "training that network again", read)


def train_pool(
    real: ImageSet,
    transform: Transform,
    network: str,
    members: int,
    training: Training,
    run: Run,
    *,
    prior: str = "plain",
) -> Pool:
    """Train ``members`` networks on ``real`` (or read them from the cache).

    Args:
        prior: what is done about uneven classes, of :data:`potstill.losses.REMEDIES`; "plain" is
            as published.
    """
    check_value("pool_prior", prior, Prior)
    check_value("members", members, Count)
    training = training.under(prior)
    spec = str(parse(network).at((real.shape[1], real.shape[2])))
    facts = key_facts(
        "pool-3",  # raise it when networks, training or augmentation change
        run,
        real.checksum,
        threads=False,
        network=spec,
        training=training.facts,
        prior=prior,
        transform=fingerprint(transform),
    )
    entry = Cached(run.cache, "pools", facts, f"{spec} on {real.source}")
    stored = {m: pair for m in range(members) if (pair := _stored(entry, m)) is not None}
    found = {m: (first, last) for m, (first, last, _) in stored.items()}
    if missing := [m for m in range(members) if m not in found]:
        trainer = _Trainer(real, transform, network, training, prior, run, entry)
        found |= trainer.train(missing)
    pairs = [found[m] for m in range(members)]
    saved = sum(seconds for _, _, seconds in stored.values())
    return Pool(network, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), entry.key, saved)


def _name(member: int) -> str:
    return f"network-{member:03d}.safetensors"


@dataclass(frozen=True, eq=False)
class _Trainer:
    """Trains members of a pool and puts each into the ``entry`` when it is done."""

    real: ImageSet
    transform: Transform
    network: str
    training: Training
    prior: str
    run: Run
    entry: Cached

    def train(self, missing: list[int]) -> dict[int, tuple[State, State]]:
        """Return the initial and the trained weights of the ``missing``."""
        self.entry.hold()
        places = Places(self.entry.folder, self.entry.key, self.run.checkpoint_seconds)
        places.find(first_form(self.prior, self.new(missing[0])))
        together = len(missing) if self.run.on_gpu else max(1, torch.get_num_threads())
        found: dict[int, tuple[State, State]] = {}
        for begin in range(0, len(missing), together):
            group = missing[begin : begin + together]
            label = f"train network {begin + 1}-{begin + len(group)} of {len(missing)}"
            found |= self._train(group, places, label)
        return found

    def _train(
        self, group: list[int], places: Places, label: str
    ) -> dict[int, tuple[State, State]]:
        nets = [self.new(member) for member in group]
        initial, row = [_snapshot(net) for net in nets], REMEDIES[self.prior]
        examples = Examples(self.real.rows(), self.real.labels, self.transform)
        found: dict[int, tuple[State, State]] = {}
        last, staged = self.training.epochs - 1, bool(row.stages)

        def draws(purpose: str, k: int, index: int) -> torch.Generator:
            return self.run.generator(f"pool/{purpose}", group[k], index)

        def keep(k: int, epoch: int, net: Network) -> None:
            if epoch == last:
                correct_(net, row.post_hoc, examples)
                found[group[k]] = initial[k], _snapshot(net)
                self._save(group[k], *found[group[k]], places.lap(group[k]))
                places.forget(group[k])

        train = partial(train_recipe, row.stages) if staged else train_many
        train(
            nets,
            examples,
            self.training,
            loss=row.loss_for(self.real.counts),
            device=self.run.device,
            precision=self.run.precision if self.run.on_gpu else "fp32",
            channels_last=self.run.on_gpu or parse(self.network).thin,
            quiet=self.run.quiet,
            generators=draws,
            on_epoch=None if staged else keep,
            label=label,
            start_epoch=[places.take(member) or 0 for member in group],
            kept=places.of(group),
        )
        if staged or not self.training.epochs:
            for k, net in enumerate(nets):
                keep(k, last, net)
        return found

    def _save(self, member: int, initial: State, trained: State, seconds: float) -> None:
        tensors = {f"initial.{n}": t for n, t in initial.items()}
        tensors |= {f"trained.{n}": t for n, t in trained.items()}
        self.entry.save(_name(member), tensors, {}, seconds)

    def new(self, member: int) -> Network:
        """Return a member as it is before training."""
        generator = self.run.generator("pool/weights", member)
        return create_for(self.real, self.network, generator)


def _snapshot(net: Network) -> State:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
