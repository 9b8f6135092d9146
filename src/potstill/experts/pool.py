"""A pool of networks for matching: each as it began and as it ended after training on the real set.

Matching looks through a point on the segment between the two (DANCE, Zhang et al., IJCAI 2024;
NCFM, Wang et al., CVPR 2025): ``blend`` of the initial and ``1 - blend`` of the trained weights of
the *same* network. The pool is cached on disk by content, so runs that share data and recipe share
their networks, and a killed run loses at most the networks in training.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.losses import cross_entropy, logit_adjusted
from potstill.nets import Network, create_for, parse
from potstill.nets.many import Examples, Training, train_many
from potstill.run import InputError, Run
from potstill.run.checkpoint import digest, save_state
from potstill.run.recall import recall

__all__ = ["PRIORS", "Pool", "train_pool"]

PRIORS = ("plain", "balanced", "logit_adjusted")
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


def _recipe(
    real: ImageSet, network: str, training: Training, prior: str, transform: Transform, run: Run
) -> str:
    facts = {
        "data": real.checksum,
        "network": str(parse(network).at((real.shape[1], real.shape[2]))),
        "training": training.facts,
        "prior": prior,
        "transform": fingerprint(transform),
        "seed": run.seed,
        "kind": "pool-2",  # raise it when networks, training or augmentation change
        "device": run.device.split(":")[0],
        "precision": run.precision,
        "torch": torch.__version__,
    }
    return digest(facts)


def fingerprint(transform: Transform) -> str:
    """16 hexadecimal digits over kind and constants of a transform."""
    total = hashlib.sha256(transform.kind.encode())
    for name, value in sorted(transform.to_tensors().items()):
        total.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def _stored(path: Path, key: str) -> tuple[State, State, float] | None:
    def read(tensors: State, facts: dict[str, Any]) -> tuple[State, State, float]:
        initial, trained = (
            {n[len(p) :]: t for n, t in tensors.items() if n.startswith(p)}
            for p in ("initial.", "trained.")
        )
        return initial, trained, float(facts["seconds"])

    return recall(path, "training that network again", read, key=key)


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
        prior: what is done about an uneven class prior: "plain" (nothing, as published),
            "balanced" (class-balanced sampling) or "logit_adjusted" (Menon et al., ICLR 2021).
    """
    if prior not in PRIORS:
        raise InputError(f"pool_prior is {prior!r}; use one of {', '.join(PRIORS)}")
    if members < 1:
        raise InputError(f"networks is {members}; use at least 1")
    key = _recipe(real, network, training, prior, transform, run)
    assert run.cache is not None
    folder = run.cache / "pools" / key
    paths = [folder / f"network-{member:03d}.safetensors" for member in range(members)]
    stored = {m: pair for m, path in enumerate(paths) if (pair := _stored(path, key)) is not None}
    found = {m: (first, last) for m, (first, last, _) in stored.items()}
    missing = [m for m in range(members) if m not in found]
    together = len(missing) if run.on_gpu else max(1, torch.get_num_threads())
    loss = logit_adjusted(real.counts) if prior == "logit_adjusted" else cross_entropy
    examples = Examples(real.rows(), real.labels, transform)
    for begin in range(0, len(missing), together):
        group = missing[begin : begin + together]

        def draws(purpose: str, k: int, index: int, group: list[int] = group) -> torch.Generator:
            return run.generator(f"pool/{purpose}", group[k], index)

        nets = [_new(network, real, run, member) for member in group]
        initial = [_snapshot(net) for net in nets]
        began = time.monotonic()
        train_many(
            nets,
            examples,
            training,
            loss=loss,
            device=run.device,
            precision=run.precision if run.on_gpu else "fp32",
            channels_last=run.on_gpu,
            quiet=run.quiet,
            generators=draws,
            label=f"train network {begin + 1}-{begin + len(group)} of {len(missing)}",
        )
        seconds = (time.monotonic() - began) / len(group)
        for member, net, first in zip(group, nets, initial, strict=True):
            found[member] = (first, _snapshot(net))
            tensors = {f"initial.{n}": t for n, t in first.items()}
            tensors |= {f"trained.{n}": t for n, t in found[member][1].items()}
            save_state(paths[member], tensors, {"key": key, "seconds": seconds})
    pairs = [found[m] for m in range(members)]
    saved = sum(seconds for _, _, seconds in stored.values())
    return Pool(network, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), key, saved)


def _new(network: str, real: ImageSet, run: Run, member: int) -> Network:
    return create_for(real, network, run.generator("pool/weights", member))


def _snapshot(net: Network) -> State:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
