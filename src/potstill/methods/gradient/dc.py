"""DC: Dataset Condensation with Gradient Matching (Zhao, Mopuri and Bilen, ICLR 2021, 2006.05929).

    L = sum_c d(grad_theta CE(real_c; theta), grad_theta CE(syn_c; theta))                (eq. 9)
    d = sum over layers and output units of 1 - cos                                        (eq. 10)

theta is a network that is trained on the synthetic images in turns with them: so many steps with
one network, after each of them some epochs on what the images have become; then a new random one.
Gradients are compared class by class in the weights, not in biases or scales of norms.

Deviations: all classes of a step share the network, as published, and their gradients are taken one
after the other, so that one class's graph is held at a time; networks with batch norm are refused.
Recipe: recipes/dc/.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.canvas import CanvasSpec, Pixels
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.gradient.gradient_matching import Gradients, MatchesGradients
from potstill.networks import NetworkSpec
from potstill.networks.evolving import EvolvingNets
from potstill.run.descent import Descent

__all__ = ["DC"]


@dataclass(frozen=True, kw_only=True)
class DC(MatchesGradients, Matcher):
    """Match gradients of a network that learns from the images as they change."""

    info = MethodInfo(
        name="dc",
        title="Dataset Condensation with Gradient Matching",
        paper="Zhao et al., ICLR 2021",
        year=2021,
        arxiv="2006.05929",
        family="gradient matching",
        labels="hard",
        long_tail="class by class; no class prior enters the match",
        cost="a second-order pass of the set and a first-order one of real batches per step",
    )

    canvas: CanvasSpec = Pixels(start="noise", bounded=False)
    networks: NetworkSpec = EvolvingNets()
    gradients: Gradients = Gradients()
    descent: Descent = Descent(  # 1000 networks at 10 images per class; per normalised pixel
        steps=10_000, lr_images=0.1, optimizer="sgd"
    )
