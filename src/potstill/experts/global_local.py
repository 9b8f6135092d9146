"""GLMC: two mixtures of the same images should be alike, and heads go from plain to re-weighted.

Global and Local Mixture Consistency Cumulative Learning, Du et al., CVPR 2023, arXiv 2305.08661, as
RLDD trains its experts. A batch a as images come and a batch b drawn as n_c^{1 - r}, two augmented
views of each, one λ ~ U(0, 1): view 1 is mixup of a and b, view 2 has a box of b in a. With the
features h, two classifiers f and g, a projection z = P h and a prediction p = Q z,

    L = (1 - s^2) Σ_v CE(f(h_v), y) + s^2 Σ_v CE(g(h_v), w ∘ y) - γ [cos(p_1, z_2) + cos(p_2, z_1)],

where s = t / T in epoch t of T, w_c = C n_c^{-q} / Σ_j n_j^{-q} and no gradient flows into the z.
The re-balanced classifier g is the network's own afterwards.

Deviations: batch b has exact shares where the released code draws each image on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from potstill.data.augment import paste
from potstill.losses import Loss, cross_entropy, weighted
from potstill.nets import Examples, Network, Training, initialise
from potstill.nets.feed import Feed
from potstill.nets.sampling import shared_order
from potstill.nets.training import Generators

__all__ = ["CumulativeLoss", "Mixtures", "doubled", "rebalanced_weights"]

_POWER = 0.2  # r, of the second batch (released default)
_WIDTH = 128  # of projection and prediction


class Mixtures(Feed):
    """Two mixed views of every image, one behind the other in the channels."""

    def __init__(
        self, examples: Examples, training: Training, generators: Generators, like: Network
    ) -> None:
        super().__init__(examples, training, generators, like)
        if self.targets.ndim == 1:
            self.targets = one_hot(self.targets, like.classifier.out_features).to(self.dtype)
        sizes = torch.tensor([len(group) for group in self.groups]).double()
        self.shares = sizes ** (1 - _POWER)

    @torch.no_grad()
    def batch(self, member: int, step: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views (b, 2c, h, w) and the labels that they share (b, K)."""
        draw = self.generators("partner", member, step)
        others = shared_order(self.groups, self.shares, len(positions), draw).to(positions.device)
        keep, down, across = torch.rand(
            3, generator=self.generators("mixup", member, step)
        ).tolist()
        a, b, c, d = (
            self.view(own, f"augment/{number}", member, step)
            for number, own in enumerate((positions, others, positions, others))
        )
        views = [torch.lerp(b, a, keep), paste(c, d, keep, down, across)[0]]
        targets = torch.lerp(self.targets[others], self.targets[positions], keep)
        return torch.cat(views, 1), targets


class _Twice(nn.Module):
    """Both views through one body, features side by side (b, 2d)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(view).flatten(1) for view in x.chunk(2, 1)], 1)


class _Heads(nn.Linear):
    """The re-balanced classifier, beside it the plain one, projection and prediction."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)
        self.plain = nn.Linear(dim, classes)
        self.projection = nn.Linear(dim, _WIDTH)
        self.prediction = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Logits of f and g for both views and the views' likeness, (b, 4K + 1)."""
        views = h.chunk(2, 1)
        z = [self.projection(view) for view in views]
        p = [self.prediction(one) for one in z]
        alike = [cosine_similarity(p[k], z[1 - k].detach(), dim=1) for k in (0, 1)]
        logits = [self.plain(view) for view in views]
        logits += [super(_Heads, self).forward(view) for view in views]
        return torch.cat([*logits, sum(alike)[:, None]], 1)  # type: ignore[index]


def doubled(network: Network, generator: torch.Generator) -> Network:
    """Return a network that sees two views with the body of ``network``, its heads drawn anew."""
    old = network.classifier
    with torch.device("meta"):
        head = _Heads(network.feature_dim, old.out_features)
        twin = Network(nn.Identity(), 2 * network.feature_dim, old.out_features)
    head.to_empty(device="cpu")
    initialise(head, generator)
    twin.body, twin.classifier = _Twice(network.body), head.to(old.weight)
    return twin


def rebalanced_weights(counts: Tensor, power: float) -> Tensor:
    """Return C n_c^{-q} / Σ_j n_j^{-q}, (C,) float64, with q = ``power``."""
    weights = counts.double() ** -power
    return weights * len(weights) / weights.sum()


@dataclass(frozen=True)
class CumulativeLoss:
    """The loss of an epoch, see the module; a :class:`potstill.losses.Scheduled`."""

    counts: Tensor  # training images per class (C,), all positive
    power: float = 0.8  # q (RLDD's for CIFAR-10-LT; GLMC: 1 to 1.2)
    consistency: float = 1.0  # γ (RLDD's; GLMC: 1 to 10)

    def at(self, share: float) -> Loss:
        """Return the loss on what the heads give (b, 4K + 1) for targets (b, K)."""
        rebalanced = weighted(cross_entropy, rebalanced_weights(self.counts, self.power))

        def loss(found: Tensor, targets: Tensor) -> Tensor:
            logits, alike = found[:, :-1].unflatten(1, (4, -1)).unbind(1), found[:, -1]
            plain = cross_entropy(logits[0], targets) + cross_entropy(logits[1], targets)
            even = rebalanced(logits[2], targets) + rebalanced(logits[3], targets)
            return (1 - share**2) * plain + share**2 * even - self.consistency * alike

        return loss
