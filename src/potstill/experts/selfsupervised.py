"""A small backbone trained without labels on any image source: SimCLR or Barlow Twins.

What a pre-trained backbone is to a laptop: everything that needs one also runs without a download.
Training is one loop of two random views per image, a projection head that is thrown away, AdamW and
a cosine schedule. It is resumed per epoch and gives the same bytes on the same kind of CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from potstill.run import DivergedError, InputError, Run, logger, progress
from potstill.run.checkpoint import digest, load_state, save_state
from potstill.run.descent import pack, unpack

__all__ = ["SelfSupervision", "train_backbone"]


@dataclass(frozen=True, kw_only=True)
class SelfSupervision:
    """How a backbone is trained without labels.

    Raises:
        InputError: a field is out of range.
    """

    network: str = "convnet-w64-bn"  # our own networks; depth from the image size unless given
    objective: str = "simclr"  # "simclr" or "barlow"
    epochs: int = 30
    batch: int = 256  # images per step, two views each
    lr: float = 1e-3  # AdamW, cosine to zero after a twentieth of warm-up
    weight_decay: float = 1e-4
    temperature: float = 0.2  # SimCLR only
    hidden: int = 512  # units of the projection head
    projection: int = 128  # its outputs
    crop_min: float = 0.2  # smallest area of a view's crop
    flip: float = 0.5  # probability of a mirrored view; 0 for digits and letters
    color: float = 0.8  # probability of a colour change (brightness, saturation, contrast)

    def __post_init__(self) -> None:
        parse(self.network)
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; use one of {', '.join(OBJECTIVES)}")
        for name, least in ("epochs", 1), ("batch", 2), ("hidden", 1), ("projection", 1):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; use at least {least}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; use a positive number")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay is {self.weight_decay}; use 0 or more")
        if not 0 <= self.color <= 1:
            raise InputError(f"color is {self.color}; use a probability from 0 to 1")
        self.views()

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
    return {
        "kind": "self-supervised-1",  # raise it when training or augmentation change
        "data": real.checksum,
        "shape": list(real.shape),
        "how": asdict(how) | {"network": str(parse(how.network).at(real.shape[1:]))},
        "seed": run.seed,
        "device": run.device.split(":")[0],
        "precision": run.precision,
        # sums over a batch depend on how many threads share them
        "threads": 0 if run.on_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
    }


def train_backbone(real: ImageSet, how: SelfSupervision, run: Run, folder: Path) -> Backbone:
    """Train a backbone on the images of ``real`` into ``folder``; their labels are not looked at.

    A finished one is read; an unfinished one is gone on with after its last whole epoch.

    Raises:
        InputError: the folder holds another training's state. DivergedError: a loss is not finite.
        StorageError: cannot write.
    """
    facts = recipe(real, how, run)
    if (folder / FILE).is_file():
        _, known = load_state(folder / FILE, unchecked=True, fix=REPAIR)
        if known.get("about", {}).get("recipe") != digest(facts):
            raise InputError(
                f"{folder} holds a backbone of another training; choose another folder or delete it"
            )
        unused = Normalize(torch.full(real.shape[:1], 0.5), torch.full(real.shape[:1], 0.25))
        return open_backbone(str(folder), real.shape, run.generator("unused"), unused)
    transform = Normalize.fit(real)
    network, seconds, losses = _trained(real, transform, how, run, folder, digest(facts))
    label = f"{how.objective}-{parse(how.network).at(real.shape[1:])}"
    size, channels = (real.shape[1], real.shape[2]), real.shape[0]
    computes = f"potstill:{parse(how.network).at(real.shape[1:])}"
    found = frozen(label, network.body, size, channels, transform, computes)
    about = {
        "recipe": digest(facts),
        "how": facts["how"],
        "data": {"source": real.source, "checksum": real.checksum, "images": len(real)},
        "seed": run.seed,
        "seconds": round(seconds, 1),
        "losses": [round(value, 4) for value in losses],
    }
    save_backbone(found, str(parse(how.network).at(real.shape[1:])), folder, about)
    (folder / "training.safetensors").unlink(missing_ok=True)
    return replace(found, trained_seconds=seconds)


def _trained(
    real: ImageSet, transform: Normalize, how: SelfSupervision, run: Run, folder: Path, key: str
) -> tuple[Network, float, list[float]]:
    """Train; return the network, the seconds of all parts and the mean loss of each epoch."""
    if run.on_gpu and real.images.nbytes < 1e9 * run.memory_gb:
        real = real.to(run.device)
    network = create(
        parse(how.network).at(real.shape[1:]),
        channels=real.shape[0],
        size=real.shape[1:],
        classes=1,
        generator=run.generator("self/weights"),
    )
    head = _Projection(network.feature_dim, how, run.generator("self/projection"))
    network.to(run.device).train(), head.to(run.device).train()
    parts = {f"network.{n}": p for n, p in network.body.named_parameters()}
    parts |= {f"head.{n}": p for n, p in head.named_parameters()}
    optimizer = torch.optim.AdamW(parts.values(), lr=how.lr, weight_decay=how.weight_decay)
    path, began, spent, first, losses = (
        folder / "training.safetensors",
        time.monotonic(),
        0.0,
        0,
        [],
    )
    if path.is_file():
        tensors, facts = load_state(path)
        if facts["key"] != key:
            raise InputError(
                f"{folder} holds an unfinished backbone of another training; choose another folder "
                "or delete it"
            )
        network.body.load_state_dict(_under("network.", tensors))
        head.load_state_dict(_under("head.", tensors))
        unpack(optimizer, tensors)
        first, spent, losses = facts["epoch"], facts["seconds"], facts["losses"]
        logger.info("resuming the backbone at epoch %d of %d", first, how.epochs)
    steps = max(1, len(real) // how.batch)

    def epochs() -> Iterator[int]:
        for epoch in range(first, how.epochs):
            total = torch.zeros((), device=run.device)
            for step in range(epoch * steps, (epoch + 1) * steps):
                for group in optimizer.param_groups:
                    group["lr"] = how.lr * _share(step, steps * how.epochs)
                loss = _loss(real, transform, how, run, step, steps, network, head)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
                yield step
            losses.append(float(total) / steps)
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"the loss of epoch {epoch} is not finite; lower lr ({how.lr})")
            state = {f"network.{n}": t for n, t in network.body.state_dict().items()}
            state |= {f"head.{n}": t for n, t in head.state_dict().items()} | pack(optimizer)
            seconds = spent + time.monotonic() - began
            save_state(
                path, state, {"key": key, "epoch": epoch + 1, "seconds": seconds, "losses": losses}
            )

    label, total = f"self-supervised {how.network}", steps * how.epochs
    for _ in progress(epochs(), label=label, quiet=run.quiet, total=total, done=first * steps):
        pass
    return network.cpu(), spent + time.monotonic() - began, losses


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def _share(step: int, total: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _loss(
    real: ImageSet,
    transform: Normalize,
    how: SelfSupervision,
    run: Run,
    step: int,
    steps: int,
    network: Network,
    head: _Projection,
) -> Tensor:
    """The objective on one batch of two views each."""
    order = torch.randperm(len(real), generator=run.generator("self/order", step // steps))
    rows = order[(step % steps) * how.batch :][: how.batch]
    images = rgb(real.rows(rows).to(run.device))
    views, color = how.views(), DSA.parse("color", rule="idc")
    seen = []
    for side in (0, 1):
        draw = run.generator("self/views", step, side)
        x = views.apply(images, views.draw(len(images), draw), (real.shape[1], real.shape[2]))
        x = transform.forward(x)
        if how.color:
            chosen = torch.rand(len(x), generator=draw) < how.color
            params = color.draw(len(x), real.shape[1:], draw, siamese=False, device=run.device)
            moved = color.apply(x, params)
            x = torch.where(chosen.to(x.device)[:, None, None, None], moved, x)
        seen.append(x)
    # both views in one pass, so that batch norm sees them together
    with torch.autocast(run.device.split(":")[0], torch.bfloat16, enabled=run.precision == "bf16"):
        projected = head(network.features(torch.cat(seen)))
    a, b = projected.float().chunk(2)
    return self_supervised(how.objective, a, b, how.temperature)
