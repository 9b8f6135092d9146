"""Training many networks of one kind: pools of feature networks, students, experts.

Three back-ends, one algorithm. Member k draws its order and augmentation from its own generators
and always computes with one intra-op thread on a CPU, so its bytes depend neither on the number of
members nor on whether they run in turn ("sequential") or one per core ("threads"). "stacked" runs
all members in lockstep as one vectorised network, which agrees to rounding; it is meant for GPUs,
where small networks wait for launches, and is slower than "threads" on a CPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from potstill.losses import Loss, cross_entropy
from potstill.nets.layers import Network
from potstill.nets.training import Examples, Feed, Generators, Training
from potstill.run import DivergedError, InputError, nearest, progress

__all__ = ["BACKENDS", "Examples", "OnEpoch", "Training", "train_many"]

BACKENDS = ("auto", "sequential", "threads", "stacked")
OnEpoch = Callable[[int, int, Network], None]  # (member, epoch just finished from 0, network)


def train_many(
    networks: Sequence[Network],
    examples: Examples,
    training: Training,
    *,
    generators: Generators,
    loss: Loss = cross_entropy,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    on_epoch: OnEpoch | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    quiet: bool = False,
    label: str = "training",
) -> None:
    """Train all ``networks`` in place on ``device``, each as if it were alone.

    Args:
        networks: the members; they may differ, except for ``"stacked"``.
        examples: what all members see, each in its own order.
        training: how.
        generators: ``(purpose, member, index)`` to a fresh generator, e.g. ``run.generator``;
            purposes are "order" (index = epoch), "augment" and "cutmix" (index = step from 0).
        loss: logits (b, K) and targets to values (b,), see :mod:`potstill.losses`.
        device: where to compute; networks stay there.
        backend: "auto" is "threads" on a CPU; on a GPU a few timed steps choose between "stacked"
            and "sequential", so name one of them where bytes must not depend on a clock. Networks
            with buffers (batch norm) or of unlike structure are trained in turn, never stacked.
        on_epoch: called by one thread at a time, not always the caller's; may read the network.
        precision: "fp32", or "bf16" autocast on a GPU.
        channels_last: memory layout on a GPU, except when stacked.
        quiet: no progress bar.
        label: what the bar says.

    Raises:
        DivergedError: a loss was not finite; names the member and the epoch.
        InputError: an argument that cannot be used.
    """
    device = torch.device(device)
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}{nearest(backend, BACKENDS)}")
    if precision not in ("fp32", "bf16") or (precision == "bf16" and device.type != "cuda"):
        raise InputError(f"precision is {precision!r} on {device.type!r}; use 'fp32' there")
    if not networks or not training.epochs:
        return
    for network in networks:
        network.to(device)
        if channels_last and device.type == "cuda":
            network.to(memory_format=torch.channels_last)
    with _one_thread(device) as threads:
        feed = Feed(examples, training, generators, networks[0])
        job = _Job(feed, loss, device, precision, channels_last and device.type == "cuda")
        if backend == "auto":
            backend = "threads" if device.type == "cpu" else _faster(job, networks)
        if backend == "stacked" and _stackable(networks):
            steps = _stacked(job, networks, on_epoch)
        elif backend == "threads" and min(threads, len(networks)) > 1:
            steps = _threads(job, networks, on_epoch, min(threads, len(networks)))
        else:
            steps = _sequential(job, networks, on_epoch)
        for _ in progress(steps, label=label, quiet=quiet, total=len(networks) * job.steps):
            pass


@contextmanager
def _one_thread(device: torch.device) -> Iterator[int]:
    """Compute with one thread on a CPU; yields the caller's number and restores it."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Job:
    """One call of :func:`train_many`."""

    feed: Feed
    loss: Loss
    device: torch.device
    precision: str
    channels_last: bool

    @property
    def steps(self) -> int:
        """Steps of one member."""
        how = self.feed.training
        return how.epochs * -(-len(self.feed.images) // how.batch)

    def descend(
        self,
        members: Sequence[int],
        parameters: Sequence[Tensor],
        forward: Callable[[Tensor], Tensor],
        after: Callable[[int], None],
    ) -> Iterator[None]:
        """Train some members in lockstep, yielding after each step.

        ``forward`` takes their images (k, b, c, h, w) to logits (k, b, K); ``after`` hears of
        every finished epoch.
        """
        how, step, passed = self.feed.training, 0, 0
        optimizer = how.optimizer_for(parameters)
        for epoch in range(how.epochs):
            if how.reset_momentum and how.milestones_before(epoch) > passed:
                passed, optimizer = how.milestones_before(epoch), how.optimizer_for(parameters)
            for group in optimizer.param_groups:
                group["lr"] = how.lr_at(epoch)
            orders = torch.stack([self.feed.order(member, epoch) for member in members])
            seen = torch.zeros(len(members), device=self.device)
            batches = orders.split(how.batch, dim=1)
            for left, positions in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
                drawn = map(self.feed.batch, members, [step] * len(members), positions)
                x, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
                with torch.enable_grad():
                    with torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bf16"):
                        logits = forward(x)
                    values = self.loss(logits.flatten(0, 1).to(x.dtype), targets.flatten(0, 1))
                    losses = values.view(len(members), -1).mean(1)
                    optimizer.zero_grad()
                    losses.sum().backward()
                optimizer.step()
                seen += losses.detach()
                step += 1
                if not left:
                    self.check(members, seen, epoch)
                    after(epoch)
                yield

    def check(self, members: Sequence[int], seen: Tensor, epoch: int) -> None:
        """Stop at a loss that is not finite; once per epoch, for a look waits for the GPU."""
        for member, finite in zip(members, seen.isfinite().tolist(), strict=True):
            if not finite:
                raise DivergedError(
                    f"the loss of network {member} became NaN or infinite in epoch {epoch + 1} of "
                    f"{self.feed.training.epochs}; use a smaller lr than {self.feed.training.lr}"
                )


def _alone(job: _Job, member: int, network: Network, on_epoch: OnEpoch | None) -> Iterator[None]:
    def forward(x: Tensor) -> Tensor:
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        return network(x[0].contiguous(memory_format=layout))[None]

    def after(epoch: int) -> None:
        if on_epoch is not None:
            on_epoch(member, epoch, network)
            network.train()

    network.train()
    yield from job.descend([member], list(network.parameters()), forward, after)
    network.zero_grad()


def _sequential(job: _Job, networks: Sequence[Network], on_epoch: OnEpoch | None) -> Iterator[None]:
    for member, network in enumerate(networks):
        yield from _alone(job, member, network, on_epoch)


def _threads(
    job: _Job, networks: Sequence[Network], on_epoch: OnEpoch | None, workers: int
) -> Iterator[None]:
    ticks: SimpleQueue[BaseException | None] = SimpleQueue()
    stop, lock = threading.Event(), threading.Lock()

    def guarded(member: int, epoch: int, network: Network) -> None:
        with lock:
            on_epoch(member, epoch, network)  # type: ignore[misc]

    def work(member: int) -> None:
        if job.device.type == "cpu":
            torch.set_num_threads(1)  # counts for the thread that says it
        try:
            for _ in _alone(job, member, networks[member], on_epoch and guarded):
                if stop.is_set():
                    return
                ticks.put(None)
        except BaseException as error:
            ticks.put(error)

    pool = ThreadPoolExecutor(workers)
    try:
        for member in range(len(networks)):
            pool.submit(work, member)
        for _ in range(len(networks) * job.steps):
            if (error := ticks.get()) is not None:
                raise error
            yield
    finally:  # also on Ctrl-C: no worker goes on for more than a step
        stop.set()
        pool.shutdown(cancel_futures=True)


def _stackable(networks: Sequence[Network]) -> bool:
    """Whether members have one structure and no running statistics."""
    return len({repr(n) for n in networks}) == 1 and not any(True for _ in networks[0].buffers())


def _stacked(job: _Job, networks: Sequence[Network], on_epoch: OnEpoch | None) -> Iterator[None]:
    for network in networks:
        network.train()
    parameters, _ = torch.func.stack_module_state(list[nn.Module](networks))
    skeleton = deepcopy(networks[0]).to("meta")

    def one(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(skeleton, values, (x,))

    @torch.no_grad()
    def unstack() -> None:
        for member, network in enumerate(networks):
            for name, value in network.named_parameters():
                value.copy_(parameters[name][member])

    def after(epoch: int) -> None:
        if on_epoch is not None:
            unstack()
            for member, network in enumerate(networks):
                on_epoch(member, epoch, network)

    forward = torch.vmap(one)
    leaves = list(parameters.values())
    for _ in job.descend(range(len(networks)), leaves, lambda x: forward(parameters, x), after):
        yield from [None] * len(networks)
    unstack()


def _faster(job: _Job, networks: Sequence[Network]) -> str:
    """Time three steps of copies each way, after three to warm up."""
    if len(networks) < 2 or job.steps < 50 or not _stackable(networks):
        return "sequential"

    def seconds(steps: Iterator[None], count: int) -> float:
        spent = 0.0
        for _ in range(2):  # the second time counts
            start = time.perf_counter()
            for _ in islice(steps, 3 * count):
                pass
            torch.cuda.synchronize(job.device)
            spent = time.perf_counter() - start
        return spent

    try:
        together = seconds(_stacked(job, deepcopy(networks), None), len(networks))
    except torch.OutOfMemoryError:
        return "sequential"
    alone = seconds(_sequential(job, deepcopy(networks[:1]), None), 1)
    return "stacked" if together < alone * len(networks) else "sequential"
