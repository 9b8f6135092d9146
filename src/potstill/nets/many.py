"""Training many networks of one kind: pools of feature networks, students, experts.

Three back-ends, one algorithm. Member k draws its order and augmentation from its own generators
and always computes with one intra-op thread on a CPU, so its bytes depend neither on the number of
members nor on whether they run in turn ("sequential") or one per core ("threads"). "stacked" runs
all members in lockstep as one vectorised network, which agrees to rounding; it is meant for GPUs,
where small networks wait for launches, and is slower than "threads" on a CPU.

A network whose body is frozen passes it once per step and without a graph; only the classifier is
differentiated, however many gradients a step takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from potstill.losses import Loss, cross_entropy
from potstill.nets.descent import Job, Lockstep, head_only
from potstill.nets.layers import Network
from potstill.nets.training import Examples, Feed, Generators, Training
from potstill.run import InputError, nearest, progress

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
    start_epoch: int | Sequence[int] = 0,
    stop_epoch: int | None = None,
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
        start_epoch: epochs that the given weights have already been trained (one number, or one
            per member); draws and schedule go on from there, as if nothing had come between.
        stop_epoch: epochs after which to stop before the schedule's end; ``None`` = none.

    Raises:
        DivergedError: a loss was not finite; names the member and the epoch.
        InputError: an argument that cannot be used.
    """
    device = torch.device(device)
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}{nearest(backend, BACKENDS)}")
    if precision not in ("fp32", "bf16") or (precision == "bf16" and device.type != "cuda"):
        raise InputError(f"precision is {precision!r} on {device.type!r}; use 'fp32' there")
    spans = _spans(training, len(networks), start_epoch, stop_epoch)
    if not any(spans):
        return
    _check_sharpness(training, networks)
    for network in networks:
        network.to(device)
        if channels_last and device.type == "cuda":
            network.to(memory_format=torch.channels_last)
    with _one_thread(device) as threads:
        feed = Feed(examples, training, generators, networks[0])
        job = Job(feed, loss, device, precision, channels_last and device.type == "cuda", spans)
        if backend == "auto":
            backend = "threads" if device.type == "cpu" else _faster(job, networks)
        if backend == "stacked" and _stackable(job, networks):
            steps = _stacked(job, networks, on_epoch)
        elif backend == "threads" and min(threads, len(networks)) > 1:
            steps = _threads(job, networks, on_epoch, min(threads, len(networks)))
        else:
            steps = _sequential(job, networks, on_epoch)
        for _ in progress(steps, label=label, quiet=quiet, total=job.total):
            pass


def _spans(
    training: Training, members: int, start: int | Sequence[int], stop: int | None
) -> list[range]:
    """Return the epochs of each member."""
    starts = [start] * members if isinstance(start, int) else list(start)
    last = training.epochs if stop is None else stop
    if len(starts) != members or not 0 <= min(starts, default=0) <= max(starts, default=0) <= last:
        raise InputError(
            f"start_epoch is {start}; use one number, or one for each of {members} networks, "
            f"from 0 to {last}"
        )
    if last > training.epochs:
        raise InputError(
            f"stop_epoch is {stop}; use at most the {training.epochs} epochs there are"
        )
    if any(starts) and not training.memoryless:
        raise InputError(
            f"start_epoch is {start}, but {training.optimizer} with momentum {training.momentum} "
            "remembers earlier epochs; start at 0, or use sgd with momentum 0"
        )
    return [range(first, last) for first in starts]


def _check_sharpness(training: Training, networks: Sequence[Network]) -> None:
    for member, network in enumerate(networks):
        if training.sharpness is not None and any(True for _ in network.buffers()):
            raise InputError(
                f"sharpness is set, but network {member} keeps running statistics (batch norm), "
                "which its second pass would count twice; use instance norm ('-in')"
            )


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


def _alone(job: Job, member: int, network: Network, on_epoch: OnEpoch | None) -> Iterator[None]:
    head = head_only(network)

    def see(x: Tensor) -> Tensor:
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        x = x[0].contiguous(memory_format=layout)
        if head:
            with torch.no_grad():
                x = network.features(x)
        return x[None]

    def forward(x: Tensor) -> Tensor:
        return (network.classifier if head else network)(x[0])[None]

    def after(epoch: int) -> None:
        if on_epoch is not None:
            on_epoch(member, epoch, network)
            network.train()

    network.train()
    yield from job.descend(Lockstep([member], list(network.parameters()), see, forward, after))
    network.zero_grad()


def _sequential(job: Job, networks: Sequence[Network], on_epoch: OnEpoch | None) -> Iterator[None]:
    for member, network in enumerate(networks):
        yield from _alone(job, member, network, on_epoch)


def _threads(
    job: Job, networks: Sequence[Network], on_epoch: OnEpoch | None, workers: int
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
        for _ in range(job.total):
            if (error := ticks.get()) is not None:
                raise error
            yield
    finally:  # also on Ctrl-C: no worker goes on for more than a step
        stop.set()
        pool.shutdown(cancel_futures=True)


def _stackable(job: Job, networks: Sequence[Network]) -> bool:
    """Whether members have one structure, no running statistics and one span."""
    alike = {(repr(n), *(p.requires_grad for p in n.parameters())) for n in networks}
    no_buffers = not any(True for _ in networks[0].buffers())
    return len(alike) == 1 and no_buffers and len(set(job.spans)) == 1


def _stacked(job: Job, networks: Sequence[Network], on_epoch: OnEpoch | None) -> Iterator[None]:
    for network in networks:
        network.train()
    parameters, _ = torch.func.stack_module_state(list[nn.Module](networks))
    skeleton, head = deepcopy(networks[0]).to("meta"), head_only(networks[0])

    def part(module: nn.Module, prefix: str) -> Callable[[Tensor], Tensor]:
        """All members' ``module`` on their own inputs (k, b, ...)."""
        own = {n[len(prefix) :]: v for n, v in parameters.items() if n.startswith(prefix)}
        call = torch.vmap(lambda values, x: torch.func.functional_call(module, values, (x,)))
        return lambda x: call(own, x)

    whole, body = part(skeleton, ""), part(skeleton.body, "body.")

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return body(x).flatten(2)

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

    forward = part(skeleton.classifier, "classifier.") if head else whole
    see = features if head else (lambda x: x)
    members = range(len(networks))
    group = Lockstep(members, list(parameters.values()), see, forward, after)
    for _ in job.descend(group):
        yield from [None] * len(networks)
    unstack()


def _faster(job: Job, networks: Sequence[Network]) -> str:
    """Time three steps of copies each way, after three to warm up."""
    if len(networks) < 2 or job.steps(0) < 50 or not _stackable(job, networks):
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
