"""A small backbone trained without labels on any image source: SimCLR or Barlow Twins.

What a pre-trained backbone is to a laptop: everything that needs one also runs without a download.
Training is one loop of two random views per image, a projection head that is thrown away, AdamW and
a cosine schedule. It is resumed where it was left and gives the same bytes on the same kind of CPU.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data import DSA, ImageSet, Normalize
from potstill.data.views import Views
from potstill.losses.contrastive import OBJECTIVES, self_supervised
from potstill.nets import Network, create, initialise, parse
from potstill.nets.backbone import FILE, REPAIR, Backbone, open_backbone, save_backbone
from potstill.nets.frozen import frozen
from potstill.nets.training import rgb
from potstill.run import ArtifactError, DivergedError, InputError, Run, logger, progress
from potstill.run.cache import key_facts
from potstill.run.checkpoint import digest, load_state, under
from potstill.run.descent import cosine, pack, unpack
from potstill.run.fields import (
    Epochs,
    NotNegative,
    OneOf,
    Positive,
    PositiveShare,
    Range,
    Share,
    check_fields,
)
from potstill.run.keeper import Keeper, in_threads
from potstill.run.memory import refusing

__all__ = ["SelfSupervision", "train_backbone"]

Units = Annotated[int, Range(1, 2**13)]


@dataclass(frozen=True, kw_only=True)
class SelfSupervision:
    """How a backbone is trained without labels.

    Raises:
        InputError: a field is out of range.
    """

    network: str = "convnet-w64-bn"  # our own networks; depth from the image size unless given
    objective: Annotated[str, OneOf(*OBJECTIVES)] = "simclr"  # "simclr" or "barlow"
    epochs: Epochs = 30
    batch: Annotated[int, Range(2, 10**6)] = 256  # images per step, two views each
    lr: Positive = 1e-3  # AdamW, cosine to zero after a twentieth of warm-up
    weight_decay: NotNegative = 1e-4
    temperature: Positive = 0.2  # SimCLR only
    hidden: Units = 512  # units of the projection head
    projection: Units = 128  # its outputs
    crop_min: PositiveShare = 0.2  # smallest area of a view's crop
    flip: Share = 0.5  # probability of a mirrored view; 0 for digits and letters
    color: Share = 0.8  # probability of a colour change (brightness, saturation, contrast)

    def __post_init__(self) -> None:
        check_fields(self)
        parse(self.network)

    def views(self) -> Views:
        """The crops and mirrors of the two views."""
        return Views(crop_min=self.crop_min, flip=self.flip, noise=0.0)


class _Projection(nn.Module):
    """Linear, batch norm without parameters, ReLU, linear; only training sees it."""

    def __init__(self, dim: int, how: SelfSupervision, generator: torch.Generator) -> None:
        super().__init__()
        with torch.device("meta"):  # nothing is drawn while the layers are built
            self.first = nn.Linear(dim, how.hidden)
            self.last = nn.Linear(how.hidden, how.projection)
        self.to_empty(device="cpu")
        initialise(self, generator)

    def forward(self, z: Tensor) -> Tensor:
        hidden = F.batch_norm(self.first(z), None, None, training=True)
        return self.last(F.relu(hidden))


def recipe(real: ImageSet, how: SelfSupervision, run: Run) -> dict[str, Any]:
    """What determines the weights, JSON-like."""
    return key_facts(
        "self-supervised-1",  # raise it when training or augmentation change
        run,
        real.checksum,
        shape=list(real.shape),
        how=asdict(how) | {"network": str(parse(how.network).at(real.shape[1:]))},
    )


def train_backbone(real: ImageSet, how: SelfSupervision, run: Run, folder: Path) -> Backbone:
    """Train a backbone on the images of ``real`` into ``folder``; their labels are not looked at.

    A finished one is read; an unfinished one is gone on with where it was left.

    Raises:
        InputError: the folder holds another training's state, or memory does not suffice.
        DivergedError: a loss is not finite. StorageError: cannot write.
    """
    facts = recipe(real, how, run)
    if (folder / FILE).is_file():
        _, known = load_state(folder / FILE, unchecked=True, fix=REPAIR)
        if known.get("about", {}).get("recipe") != digest(facts):
            raise InputError(
                f"{folder} holds a backbone of another training; choose another folder or delete it"
            )
        _keeper(folder, run).forget()  # a kill may have left it
        unused = Normalize(torch.full(real.shape[:1], 0.5), torch.full(real.shape[:1], 0.25))
        return open_backbone(str(folder), real.shape, run.generator("unused"), unused)
    taken = (real, Normalize.fit(real), how, run, folder, digest(facts))
    training = _Training(*taken)
    try:
        training.resume()
    except ArtifactError as error:
        logger.warning("%s; beginning again", str(error).partition(";")[0])
        training = _Training(*taken)
    body, network = training.finish().body, facts["how"]["network"]
    found = frozen(
        f"{how.objective}-{network}", body, real.shape[1:], real.shape[0], training.transform,
        f"potstill:{network}",
    )  # fmt: skip
    seconds = training.seconds
    about = {
        "recipe": digest(facts),
        "how": facts["how"],
        "data": {"source": real.source, "checksum": real.checksum, "images": len(real)},
        "seed": run.seed,
        "seconds": round(seconds, 1),
        "losses": [round(value, 4) for value in training.losses],
    }
    save_backbone(found, network, folder, about)
    training.keeper.forget()
    return replace(found, trained_seconds=seconds)


def _keeper(folder: Path, run: Run) -> Keeper:
    return Keeper(folder / "training.safetensors", run.checkpoint_seconds)


class _Training:
    """One training: what it has by now, and its state file."""

    def __init__(
        self, real: ImageSet, transform: Normalize, how: SelfSupervision, run: Run, folder: Path,
        key: str,
    ) -> None:  # fmt: skip
        if run.on_gpu and real.images.nbytes < run.budget.images:
            real = real.to(run.device)
        self.real, self.transform, self.how, self.run, self.key = real, transform, how, run, key
        spec, draw = parse(how.network).at(real.shape[1:]), run.generator("self/weights")
        self.network = create(
            spec, channels=real.shape[0], size=real.shape[1:], classes=1, generator=draw
        )
        self.head = _Projection(self.network.feature_dim, how, run.generator("self/projection"))
        self.network.to(run.device).train(), self.head.to(run.device).train()
        leaves = [*self.network.body.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(leaves, lr=how.lr, weight_decay=how.weight_decay)
        self.step, self.losses, self.spent = 0, list[float](), 0.0
        self.total = torch.zeros((), device=run.device)  # of the epoch's losses so far
        self.began = time.monotonic()
        self.keeper = _keeper(folder, run)
        self.epoch_steps = max(1, len(real) // how.batch)

    @property
    def seconds(self) -> float:
        """Seconds spent, those of killed parts included."""
        return self.spent + time.monotonic() - self.began

    def finish(self) -> Network:
        """Go on to the end; return the network."""
        how, total, done = self.how, self.epoch_steps * self.how.epochs, self.step
        cores = None if self.run.on_gpu else torch.get_num_threads()
        advice = (
            f"memory does not suffice for {how.batch} images in two views each, which are compared "
            f"with each other ({how.network}); use a smaller batch, a narrower network, smaller "
            "images or a device with more memory"
        )
        with refusing(advice), closing(in_threads([self._steps], 1, cores)) as steps:
            label = f"self-supervised {how.network}"
            for _ in progress(steps, label=label, quiet=self.run.quiet, total=total, done=done):
                pass
        return self.network.cpu()

    def _steps(self) -> Generator[None, None, None]:
        how, steps = self.how, self.epoch_steps
        for step in range(self.step, steps * how.epochs):
            for group in self.optimizer.param_groups:
                group["lr"] = how.lr * _share(step, steps * how.epochs)
            loss = self._loss(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.total += loss.detach()
            self.step = step + 1
            if self.step % steps == 0:
                self._check()
                self.losses.append(float(self.total) / steps)
                self.total.zero_()
            if self.keeper.due:
                self._check()
                self.keeper.save(*self._state())
            try:
                yield
            except GeneratorExit:
                if bool(self.total.isfinite()):
                    self.keeper.leave(*self._state())
                raise

    def _loss(self, step: int) -> Tensor:
        """The objective on one batch of two views each."""
        real, how, run = self.real, self.how, self.run
        epoch, place = divmod(step, self.epoch_steps)
        order = torch.randperm(len(real), generator=run.generator("self/order", epoch))
        images = rgb(real.rows(order[place * how.batch :][: how.batch]).to(run.device))
        views, color = how.views(), DSA.parse("color", rule="idc")
        seen = []
        for side in (0, 1):
            draw = run.generator("self/views", step, side)
            x = views.apply(images, views.draw(len(images), draw), real.shape[1:])
            x = self.transform.forward(x)
            if how.color:
                chosen = torch.rand(len(x), generator=draw) < how.color
                params = color.draw(len(x), real.shape[1:], draw, siamese=False, device=run.device)
                moved = color.apply(x, params)
                x = torch.where(chosen.to(x.device)[:, None, None, None], moved, x)
            seen.append(x)
        # both views in one pass, so that batch norm sees them together
        kind, half = run.device.split(":")[0], run.precision == "bf16"
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            projected = self.head(self.network.features(torch.cat(seen)))
        a, b = projected.float().chunk(2)
        return self_supervised(how.objective, a, b, how.temperature)

    def _check(self) -> None:
        if not bool(self.total.isfinite()):
            epoch, lr = (self.step - 1) // self.epoch_steps, self.how.lr
            raise DivergedError(f"the loss of epoch {epoch} is not finite; lower lr ({lr})")

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state = {f"network.{n}": t for n, t in self.network.body.state_dict().items()}
        state |= {f"head.{n}": t for n, t in self.head.state_dict().items()}
        state |= pack(self.optimizer) | {"total": self.total}
        facts = {"key": self.key, "step": self.step, "seconds": self.seconds, "losses": self.losses}
        return state, facts

    def resume(self) -> None:
        """Put back what a killed training left, if it did.

        Raises:
            ArtifactError: it is damaged, and this training is not to be gone on with.
            InputError: it is of another training.
        """
        if not self.keeper.path.is_file():
            return
        path, (tensors, facts) = self.keeper.path, load_state(self.keeper.path)
        if facts.get("key") != self.key:
            raise InputError(
                f"{path.parent} holds an unfinished backbone of another training; choose another "
                "folder or delete it"
            )
        try:
            self.step, self.spent = int(facts["step"]), float(facts["seconds"])
            self.losses = [float(loss) for loss in facts["losses"]]
            self.total.copy_(tensors["total"])
            self.network.body.load_state_dict(under("network.", tensors))
            self.head.load_state_dict(under("head.", tensors))
            unpack(self.optimizer, tensors)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path} is no state of this training; delete it") from error
        logger.info("resuming the backbone at step %d", self.step)


def _share(step: int, total: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return cosine(step - warm, max(1, total - warm))
