"""A network that is trained while a canvas moves, in turns with it.

DC and DSA train it on the synthetic images between two steps on them, IDC, DREAM and IDM on real
ones, FRePo keeps a pool of such networks. Unlike ``train_many``, whose networks are done when it
returns, this one remembers its optimiser from call to call, begins anew when asked, and can be
written down at any moment.

Draws come from ``(purpose, birth, index)``: networks drawn one after the other, and each one's
passes and steps, are counted through all calls. The state is therefore weights, the optimiser's
memory and counters, and a run that goes on from it ends with the bytes of one that was never left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.losses import Loss, cross_entropy
from potstill.nets.feed import Feed
from potstill.nets.layers import Network
from potstill.nets.places import fits
from potstill.nets.spec import NetSpec, create
from potstill.nets.training import Examples, Generators, Training
from potstill.nets.training_steps import Job, Lockstep
from potstill.run import ArtifactError, DivergedError, InputError
from potstill.run.checkpoint import under
from potstill.run.descent import pack, unpack
from potstill.run.fields import OneOf, Steps, check_value
from potstill.run.keeper import in_threads

__all__ = ["OnlineNetwork"]

_COUNTERS = "counters"


class OnlineNetwork:
    """One network with its optimiser and its age; in evaluation mode between trainings.

    Args:
        name: of the network. shape: (c, h, w) of its images. classes: number of classes.
        generator: of its first weights.
        optimizer: "sgd" or "adamw" (Adam, with a weight decay of 0).
        precision: "fp32", or "bf16" on a GPU.

    Attributes:
        network: the network itself; its parameters change in place.
        births: networks before this one. passes, steps: over and on images, since its birth.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self,
        name: str | NetSpec,
        *,
        shape: tuple[int, int, int],
        classes: int,
        generator: torch.Generator,
        optimizer: str = "sgd",
        device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> None:
        check_value("optimizer", optimizer, Annotated[str, OneOf("sgd", "adamw")])
        self.device, self.precision = torch.device(device), precision
        size = (shape[1], shape[2])
        how: dict[str, Any] = {"channels": shape[0], "size": size, "classes": classes}
        self._new: Callable[..., Network] = partial(create, name, **how)
        self.network = self._new(generator=generator)
        self.network.to(self.device).eval()
        self.kind, self.births, self.passes, self.steps = optimizer, 0, 0, 0
        self._forget()

    def _forget(self) -> None:
        """Begin with a fresh optimiser, and with whole batches."""
        net = self.network
        self._group = Lockstep(
            [0], list(net.parameters()), net.state_dict(keep_vars=True),
            lambda x, own: net(x[0])[None], lambda epoch: None,
            whole=any(True for _ in net.buffers()),
        )  # fmt: skip
        self._optimizer = Training(epochs=0, batch=1, optimizer=self.kind).optimizer_for(
            self._group.parameters
        )

    def restart(self, generator: torch.Generator) -> None:
        """Draw all weights anew, in place, and forget the optimiser's memory."""
        self.network.load_state_dict(self._new(generator=generator).state_dict())
        self.births, self.passes, self.steps = self.births + 1, 0, 0
        self._forget()

    def train(
        self,
        examples: Examples,
        training: Training,
        *,
        generators: Generators,
        loss: Loss = cross_entropy,
        steps: int | None = None,
    ) -> None:
        """Go on training, with one thread on a CPU; leaving it stops between two steps.

        Args:
            examples: images and targets; constants, although they may be those of a canvas.
            training: batch, learning rate, momentum, weight decay, augmentation, ... of this call;
                its ``epochs`` passes, each in an order of its own.
            generators: ``(purpose, birth, index)`` to a fresh generator, e.g. ``run.generator``;
                purposes are "order" (index: a pass), "augment" and "cutmix" (a step).
            loss: logits and targets to values per image.
            steps: so many steps instead of passes; the last pass may end early.

        Raises:
            DivergedError: a loss was not finite.
            InputError: a training that has no meaning without an end, targets that do not fit, or
                not enough memory for one image.
        """
        _check(training, self.kind)
        check_value("steps", steps, Steps | None)
        cores = 1 if self.device.type == "cpu" else None
        work = partial(self._steps, examples, training, generators, loss, steps)
        try:
            with closing(in_threads([work], 1, cores)) as turns:
                for _ in turns:
                    pass
        finally:
            self.network.eval().zero_grad()

    def _steps(
        self, examples: Examples, training: Training, generators: Generators, loss: Loss,
        steps: int | None,
    ) -> Generator[None, None, None]:  # fmt: skip
        """Take the steps, yielding after each."""
        feed = Feed(examples, training, generators, self.network)
        job = Job(feed, loss, self.device, self.precision, False, ())
        self._group.loss = loss
        left = training.epochs * feed.steps if steps is None else steps
        for options in self._optimizer.param_groups:
            options.update(lr=training.lr, weight_decay=training.weight_decay)
            if self.kind == "sgd":
                options["momentum"] = training.momentum
        self.network.train()
        seen = torch.zeros(1, device=self.device)
        while left > 0:
            order = feed.order(self.births, self.passes)
            self.passes += 1
            for positions in order.split(training.batch)[:left]:
                x, targets = feed.batch(self.births, self.steps, positions)
                seen += job.gradients(self._group, x[None], targets[None], None)
                self._optimizer.step()
                self.steps += 1
                left -= 1
                yield
        if not bool(seen.isfinite()):
            raise DivergedError(
                f"the loss of a network that is trained beside the canvas became NaN or infinite "
                f"within {self.steps} steps; use a smaller lr than {training.lr}"
            )

    def state(self) -> dict[str, Tensor]:
        """Return copies of weights, buffers, optimiser's memory and counters, by name."""
        counts = [self.births, self.passes, self.steps, self._group.images]
        tensors = {f"network.{n}": value for n, value in self.network.state_dict().items()}
        tensors |= pack(self._optimizer)
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return copies | {_COUNTERS: torch.tensor(counts)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` returned, to the byte; other names are left alone.

        Raises:
            ArtifactError: it is the state of another network or of another optimiser.
        """
        weights = under("network.", tensors)
        memory = {n: t for n, t in tensors.items() if n.startswith("optimizer.")}
        counts = tensors.get(_COUNTERS)
        if counts is None or counts.shape != (4,) or not self._fits(weights, memory):
            raise ArtifactError("the state is not that of this network; begin again")
        self.network.load_state_dict(weights)
        self._forget()
        unpack(self._optimizer, {name: value.clone() for name, value in memory.items()})
        self.births, self.passes, self.steps, self._group.images = map(int, counts.tolist())

    def _fits(self, weights: dict[str, Tensor], memory: dict[str, Tensor]) -> bool:
        """Whether these are the network's tensors and its optimiser's memory of them."""
        slots = {"sgd": {"momentum_buffer"}, "adamw": {"exp_avg", "exp_avg_sq", "step"}}[self.kind]
        known = all(name.split(".", 2)[2] in slots for name in memory)
        return known and fits(weights, memory, self.network)


def _check(training: Training, optimizer: str) -> None:
    """Refuse what only a training with an end has, and another optimiser than the network's."""
    if training.optimizer != optimizer:
        raise InputError(f"optimizer is {training.optimizer!r}; the network has {optimizer!r}")
    if training.schedule != "constant":
        raise InputError(
            f"schedule is {training.schedule!r}; a network trained beside a canvas has no last "
            "epoch, use 'constant'"
        )
    if training.sharpness is not None:
        raise InputError("sharpness is set; a network trained beside a canvas takes plain steps")
