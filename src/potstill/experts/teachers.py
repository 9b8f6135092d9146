"""What trained networks say of images: their logits, who is right, and which images they get right.

DATM (Guo et al., ICLR 2024) and LAD begin from real images that experts classify rightly, and from
soft labels that are the mean logits of the experts that are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.nets import Network, create, predict
from potstill.nets.training import rgb
from potstill.run import InputError, Run
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import Portion

__all__ = ["mean_right_logits", "teacher_logits", "right_candidates"]

Weights = Mapping[str, Tensor]
_MOST = 1024  # images of a class looked at in one go


def _loaded(
    experts: Iterable[Weights], network: str, shape: Sequence[int], run: Run
) -> Iterator[Network]:
    """One network with the weights of one expert after another."""
    net, (channels, height, width) = None, shape
    for weights in experts:
        if net is None:
            draw = torch.Generator().manual_seed(0)  # overwritten at once
            size, classes = (height, width), len(weights["classifier.bias"])
            net = create(network, channels=channels, size=size, classes=classes, generator=draw)
            net.to(run.device)
        net.load_state_dict(weights)
        yield net


def _portion() -> Portion:
    return Portion("images", "a pass of the experts")


def teacher_logits(
    experts: Iterable[Weights], network: str, images: Tensor, transform: Transform, run: Run
) -> Iterator[Tensor]:
    """Yield the logits (n, K) on the CPU of each expert for ``images``, one expert at a time.

    Args:
        experts: parameters by name; read one after another.
        images: (n, c, h, w) uint8 or float RGB 0-1.
    """
    fits, shape, seen = _portion(), images.shape[1:], transform
    if 8 * images.numel() <= run.budget.kept:  # transformed once for all experts
        with torch.no_grad():
            parts = (transform.forward(rgb(part)) for part in images.split(CPU_CHUNK))
            images = torch.cat([*parts]).to(run.device)
            seen = nn.Identity()  # type: ignore[assignment]
    for net in _loaded(experts, network, shape, run):
        yield predict(net, images, seen, device=run.device, fits=fits).cpu()


def mean_right_logits(
    experts: Iterable[Weights],
    network: str,
    images: Tensor,
    labels: Tensor,
    transform: Transform,
    run: Run,
) -> tuple[Tensor, Tensor]:
    """Average, image by image, over the experts that classify it rightly.

    Args:
        images: (n, c, h, w) uint8 or float RGB 0-1, with ``labels`` (n,).

    Returns:
        Mean logits (n, K), zeros where no expert is right, and how many are right (n,) int64.

    Raises:
        InputError: there is no expert.
    """
    own, total, right = labels.cpu(), None, torch.zeros(len(labels), dtype=torch.int64)
    for logits in teacher_logits(experts, network, images, transform, run):
        hits = logits.argmax(1) == own
        part = logits * hits[:, None]
        total = part if total is None else total + part
        right += hits
    if total is None:
        raise InputError("experts is empty; give the parameters of at least one")
    return total / right.clamp_min(1)[:, None], right


def right_candidates(
    real: ImageSet,
    needed: Sequence[int],
    experts: Iterable[Weights],
    network: str,
    transform: Transform,
    run: Run,
) -> list[Tensor]:
    """Return for each class positions of images that some expert classifies rightly.

    The images of a class are looked at in a drawn order, by the first expert until it has found
    ``needed[label]``; the second goes through those that the first got wrong, and so on. A class
    may end with fewer, or none; experts are read only while a class is short.
    """
    if len(needed) != real.num_classes:
        raise InputError(
            f"needed has {len(needed)} numbers; give {real.num_classes}, one per class"
        )
    fits, nets = _portion(), _loaded(experts, network, real.shape, run)
    found: list[list[Tensor]] = [[] for _ in needed]
    short = {label: int(count) for label, count in enumerate(needed) if count > 0}
    left = {}
    for label in short:
        own = real.of_class(label)
        left[label] = own[torch.randperm(len(own), generator=run.generator("right", label))]
    while short and (net := next(nets, None)) is not None:

        def said(part: Tensor, net: Network = net) -> Tensor:
            own = predict(net, real.rows(part), transform, device=run.device, fits=fits)
            return own.argmax(1).cpu()

        for label in [*short]:
            right, left[label] = _scan(said, label, left[label], short[label])
            found[label].append(right)
            short[label] -= len(right)
            if not short[label] or not len(left[label]):
                del short[label]
    return [torch.cat([torch.empty(0, dtype=torch.int64), *parts]) for parts in found]


def _scan(
    said: Callable[[Tensor], Tensor], label: int, order: Tensor, needed: int
) -> tuple[Tensor, Tensor]:
    """Return the first ``needed`` of the positions ``order`` that are right, and those wrong."""
    right, wrong, seen = [], [], 0
    while seen < len(order) and needed > 0:
        part = order[seen : seen + min(_MOST, max(CPU_CHUNK, 2 * needed))]
        hits = said(part) == label
        right.append(part[hits][:needed])
        wrong.append(part[~hits])
        needed, seen = needed - len(right[-1]), seen + len(part)
    return torch.cat([order[:0], *right]), torch.cat([order[:0], *wrong, order[seen:]])
