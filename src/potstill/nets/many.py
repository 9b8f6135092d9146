"""Training many networks of one kind: pools of feature networks, students, experts.

Three back-ends, one algorithm. Member k draws from its own generators and always computes with one
thread on a CPU, so its bytes depend neither on the number of members nor on whether they run in
turn ("sequential") or one per core ("threads"). "stacked" runs all members in lockstep as one
vectorised network, which agrees to rounding; it is meant for GPUs, where small networks wait.

A network whose body is frozen passes it once per step and without a graph; only the classifier is
differentiated, however many gradients a step takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from potstill.losses import Loss, Scheduled, cross_entropy
from potstill.nets.feed import Feed
from potstill.nets.layers import Network
from potstill.nets.places import Kept, Place
from potstill.nets.training import Examples, Generators, Training
from potstill.nets.training_steps import Job, Lockstep, Turns, head_only
from potstill.run import InputError, nearest, progress
from potstill.run.checkpoint import under
from potstill.run.keeper import in_threads
from potstill.run.memory import MEMORY_ERRORS, out_of_memory, refusing

__all__ = ["BACKENDS", "Examples", "OnEpoch", "Training", "train_many"]

BACKENDS = ("auto", "sequential", "threads", "stacked")
OnEpoch = Callable[[int, int, Network], None]  # (member, epoch just finished from 0, network)


def train_many(
    networks: Sequence[Network],
    examples: Examples,
    training: Training,
    *,
    generators: Generators,
    loss: Loss | Scheduled = cross_entropy,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    on_epoch: OnEpoch | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    quiet: bool = False,
    label: str = "training",
    start_epoch: int | Sequence[int | Place] = 0,
    stop_epoch: int | None = None,
    kept: Kept | None = None,
    feed: type[Feed] = Feed,
) -> None:
    """Train all ``networks`` in place on ``device``, each as if it were alone.

    Args:
        networks: the members; they may differ, except for ``"stacked"``.
        examples: what all members see, each in its own order.
        training: how.
        generators: ``(purpose, member, index)`` to a fresh generator, e.g. ``run.generator``; the
            index of "order" is an epoch, of "augment", "mixup" and "cutmix" a step from 0.
        loss: logits (b, K) and targets to values (b,), see :mod:`potstill.losses`.
        device: where to compute; networks stay there.
        backend: "auto" is "threads" on a CPU; on a GPU a few timed steps choose between "stacked"
            and "sequential", so name one of them where bytes must not depend on a clock. Networks
            with buffers (batch norm) or of unlike structure are trained in turn, never stacked.
        on_epoch: called by one thread at a time, not always the caller's; may read the network.
        precision: "fp32", or "bf16" autocast on a GPU.
        channels_last: memory layout, except when stacked; sums round differently in it.
        quiet: no progress bar. label: what the bar says.
        start_epoch: epochs that the given weights have already been trained (one number, or one
            per member); draws and schedule go on from there, as if nothing had come between. A
            place brings weights and all else that a killed training had.
        kept: where members write down where they stand, every so often and when they are left;
            who keeps the trained network removes that. ``None`` = nowhere.
        stop_epoch: epochs after which to stop before the schedule's end; ``None`` = none.
        feed: makes the batches.

    Raises:
        DivergedError: a loss was not finite; names the member and the epoch.
        InputError: an argument that cannot be used.
    """
    device = torch.device(device)
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}{nearest(backend, BACKENDS)}")
    if precision not in ("fp32", "bf16") or (precision == "bf16" and device.type != "cuda"):
        raise InputError(f"precision is {precision!r} on {device.type!r}; use 'fp32' there")
    starts, stop = _starts(training, len(networks), start_epoch, stop_epoch)
    if all(start == stop for start in starts):
        return
    _check(training, networks, kept is not None or any(starts))
    advice = "memory does not suffice beside the networks' passes; use fewer networks or images"
    with _one_thread(device) as threads, refusing(advice):
        for network, start in zip(networks, starts, strict=True):
            if isinstance(start, Place):
                network.load_state_dict(start.network)
            network.to(device)
            if channels_last:
                network.channels_last_()
        batches = feed(examples, training, generators, networks[0])
        places = [start if isinstance(start, Place) else None for start in starts]
        job = Job(
            batches, loss, device, precision, channels_last,
            _spans(starts, stop, batches.steps), places, kept,
        )  # fmt: skip
        _train(job, networks, on_epoch, backend, threads, label, quiet)


def _train(
    job: Job, networks: Sequence[Network], on_epoch: OnEpoch | None, backend: str, threads: int,
    label: str, quiet: bool,
) -> None:  # fmt: skip
    def guarded(member: int, epoch: int, network: Network) -> None:
        with job.lock:
            on_epoch(member, epoch, network)  # type: ignore[misc]

    tell = on_epoch and guarded
    if backend == "auto":
        backend = "threads" if job.device.type == "cpu" else _faster(job, networks)
    workers = min(threads, len(networks)) if backend == "threads" else 1
    job = replace(job, turns=Turns(workers))
    works = [partial(_alone, job, member, net, tell) for member, net in enumerate(networks)]
    if backend == "stacked" and _stackable(job, networks):
        works = [partial(_stacked, job, networks, tell)]
    cores, done = 1 if job.device.type == "cpu" else None, sum(span.start for span in job.spans)
    total = sum(span.stop for span in job.spans)
    with closing(in_threads(works, workers, cores)) as steps:
        for _ in progress(steps, label=label, quiet=quiet, total=total, done=done):
            pass


def _starts(
    training: Training, members: int, start: int | Sequence[int | Place], stop: int | None
) -> tuple[list[int | Place], int]:
    """Return where each member begins, and the epoch before which all stop."""
    starts: list[int | Place] = [start] * members if isinstance(start, int) else [*start]
    last = training.epochs if stop is None else stop
    if last > training.epochs:
        raise InputError(
            f"stop_epoch is {stop}; use at most the {training.epochs} epochs there are"
        )
    epochs = [begin.epoch if isinstance(begin, Place) else begin for begin in starts]
    if len(starts) != members or not 0 <= min(epochs, default=0) <= max(epochs, default=0) <= last:
        raise InputError(
            f"start_epoch is {start}; use one number, or one for each of {members} networks, "
            f"from 0 to {last}"
        )
    if any(isinstance(begin, int) and begin for begin in starts) and not training.memoryless:
        raise InputError(
            f"start_epoch is {start}, but {training.optimizer} with momentum {training.momentum} "
            "remembers earlier epochs; start at 0, or use sgd with momentum 0"
        )
    return starts, last


def _spans(starts: Sequence[int | Place], stop: int, steps: int) -> list[range]:
    return [
        range(start.step if isinstance(start, Place) else start * steps, stop * steps)
        for start in starts
    ]


def _check(training: Training, networks: Sequence[Network], resumes: bool) -> None:
    if training.max_norm is not None and resumes:
        raise InputError("max_norm is set, whose bound the first weights give; keep no places")
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


def _alone(
    job: Job, member: int, network: Network, on_epoch: OnEpoch | None
) -> Generator[None, None, None]:
    layout = torch.channels_last if job.channels_last else torch.contiguous_format

    def image(x: Tensor) -> Tensor:
        return x[0].contiguous(memory_format=layout)

    @torch.no_grad()
    def features(x: Tensor, own: slice) -> Tensor:
        return network.features(image(x))[None]

    def after(epoch: int) -> None:
        if on_epoch is not None:
            on_epoch(member, epoch, network)
            network.train()

    head = head_only(network)
    network.train()
    group = Lockstep(
        [member],
        list(network.parameters()),
        network.state_dict(keep_vars=True),
        lambda x, own: network.classifier(x[0])[None] if head else network(image(x))[None],
        after,
        features if head else None,
        whole=any(True for _ in network.buffers()),
    )
    yield from job.descend(group)
    network.zero_grad()


def _stackable(job: Job, networks: Sequence[Network]) -> bool:
    """Whether members have one structure, no running statistics and one span."""
    alike = {(repr(n), *(p.requires_grad for p in n.parameters())) for n in networks}
    return len(alike) == 1 and len(set(job.spans)) == 1 and not [*networks[0].buffers()]


def _stacked(
    job: Job, networks: Sequence[Network], on_epoch: OnEpoch | None
) -> Generator[None, None, None]:
    for network in networks:
        network.train()
    parameters, _ = torch.func.stack_module_state(list[nn.Module](networks))
    skeleton, head = deepcopy(networks[0]).to("meta"), head_only(networks[0])

    def part(module: nn.Module, prefix: str) -> Callable[[Tensor, slice], Tensor]:
        """Some members' ``module`` on their own inputs (k, b, ...)."""
        mine = under(prefix, parameters)
        call = torch.vmap(lambda values, x: torch.func.functional_call(module, values, (x,)))

        def run(x: Tensor, own: slice) -> Tensor:
            some = len(x) < len(networks)
            return call({n: v[own] for n, v in mine.items()} if some else mine, x)

        return run

    whole, body = part(skeleton, ""), part(skeleton.body, "body.")

    @torch.no_grad()
    def features(x: Tensor, own: slice) -> Tensor:
        return body(x, own).flatten(2)

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
    see = features if head else None
    leaves, members = list(parameters.values()), range(len(networks))
    group = Lockstep(members, leaves, parameters, forward, after, see, stacked=True)
    with closing(job.descend(group)) as steps:
        for _ in steps:
            yield from [None] * len(networks)
    unstack()


def _faster(job: Job, networks: Sequence[Network]) -> str:
    """Time three steps of copies each way, after three."""
    if len(networks) < 2 or len(job.spans[0]) < 50 or not _stackable(job, networks):
        return "sequential"
    trial = replace(job, kept=None)

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
        together = seconds(_stacked(trial, deepcopy(networks), None), len(networks))
    except (InputError, *MEMORY_ERRORS) as error:
        if not out_of_memory(error.__cause__ or error):
            raise
        return "sequential"
    alone = seconds(_alone(trial, 0, deepcopy(networks[0]), None), 1)
    return "stacked" if together < alone * len(networks) else "sequential"
