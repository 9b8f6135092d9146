"""Trainings of the long-tail table that go in stages or need more than a loss and a sampler.

====================  ==============================================================================
``crt``               plain; then a new classifier on a body that rests, classes in turn (Kang et
                      al., ICLR 2020, section 4.2)
``lws``               plain; then one learnt scale per class, all else rests (Kang et al., eq. 6)
``weight_balancing``  strong weight decay; then the classifier alone on the class-balanced loss,
                      more decay, MaxNorm after each step (Alshammari et al., CVPR 2022)
``mislas``            mixup; then classes equally often, the classifier with learnt scales on
                      label-aware smoothing, batch norm goes on to measure (Zhong et al., CVPR 2021)
``glmc``              see :mod:`potstill.experts.global_local`
====================  ==============================================================================

A row of :data:`potstill.losses.REMEDIES` names one as its ``stages``. (Remix with deferred
re-weighting, Chou et al., ECCV workshops 2020, is one training: the row ``remix_drw``.)
A caller says how networks are trained (epochs, step size, batch, augmentation); what belongs to the
recipe stands in its stages. Second stages keep the step size of the first, falling as a cosine.

Places are kept in the first stage, which is the long one. What was killed in a later stage goes on
from the last place in the first: draws know the stage, so the bytes are the same.

Deviations: MiSLAS's classifier has half the step size of its scales and the whole weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from potstill.experts.global_local import CumulativeLoss, Mixtures, doubled
from potstill.losses import REMEDIES, Loss, Scheduled, label_aware, priors
from potstill.nets import Examples, Network, Training, initialise, train_many
from potstill.nets.places import Kept, Place
from potstill.nets.training import Generators
from potstill.run import InputError
from potstill.run.fields import Checked, OneOf, Share, check_value

__all__ = ["RECIPES", "Recipe", "Stage", "first_form", "train_recipe"]


@dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """One training of a recipe.

    Raises:
        InputError: a field is out of range.
    """

    prior: Annotated[str, OneOf(*priors(stages=False))] = "plain"  # loss, sampling and mixing
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the caller's Training
    body: bool = True  # whether it is trained
    classifier: Share = 1.0  # its step size, relative; 0 = it rests
    scales: bool = False  # learn one factor per class, which is multiplied in afterwards
    fresh: bool = False  # the classifier is drawn anew
    smoothing: tuple[Share, Share] | None = None  # label-aware, of head and tail; the loss, if set
    measures: bool = False  # a body that rests goes on to measure its batch norm

    def loss(self, counts: Tensor) -> Loss | Scheduled:
        """Return what is descended on, for images per class (C,)."""
        if self.smoothing is not None:
            return label_aware(counts, *self.smoothing)
        return REMEDIES[self.prior].loss_for(counts)


_SHORT = {"epochs": 10, "schedule": "cosine", "milestones": (), "cutmix": 0.0, "warmup": 0.0}
_DECAYED = {"weight_decay": 5e-3, "schedule": "cosine", "milestones": ()}
RECIPES: dict[str, tuple[Stage, ...]] = {
    "crt": (Stage(), Stage(prior="class_aware", changes=_SHORT, body=False, fresh=True)),
    "lws": (
        Stage(),
        Stage(
            prior="class_aware", changes={**_SHORT, "epochs": 5}, body=False, classifier=0,
            scales=True,
        ),
    ),
    "weight_balancing": (
        Stage(changes=_DECAYED),
        Stage(
            prior="effective_number",
            changes={**_SHORT, "weight_decay": 0.1, "max_norm": 0.1},
            body=False,
        ),
    ),
    "mislas": (
        Stage(changes={"mixing": "mixup", "cutmix": 0.0}),
        Stage(
            prior="balanced", changes=_SHORT, body=False, classifier=0.5, scales=True,
            smoothing=(0.3, 0.0), measures=True,
        ),
    ),
    "glmc": (Stage(changes={**_DECAYED, "cutmix": 0.0}),),
}  # fmt: skip
Recipe = Annotated[str, OneOf(*RECIPES)]


def first_form(prior: str, network: Network) -> Network:
    """Return a network of the shapes that ``network`` has in the first training of a row."""
    if REMEDIES[prior].stages != "glmc":
        return network
    return doubled(network, torch.Generator())


def train_recipe(
    recipe: str,
    networks: Sequence[Network],
    examples: Examples,
    training: Training,
    *,
    generators: Generators,
    loss: Any = None,
    on_epoch: Any = None,
    start_epoch: int | Sequence[int | Place] = 0,
    kept: Kept | None = None,
    **options: Any,
) -> None:
    """Train ``networks`` in place through all stages of a recipe.

    Args:
        recipe: of :data:`RECIPES`.
        networks: of one architecture. examples: of every class at least one.
        training: what the stages' ``changes`` are made to.
        generators: as for ``train_many``; purposes of later stages begin with "stage-2/".
        loss, on_epoch: not used, for stages have losses of their own and no epochs to look at; they
            are here so that a recipe takes the place of ``train_many``.
        start_epoch, kept: of the first stage.
        options: further arguments of ``train_many``: device, backend, precision, quiet, ...

    Raises:
        InputError: an unknown recipe, or a class without images.
        DivergedError: a loss was not finite.
    """
    check_value("recipe", recipe, Recipe)
    classes = networks[0].classifier.out_features
    counts = examples.labels.cpu().bincount(minlength=classes)
    if not bool(counts.all()):
        raise InputError(
            f"recipe is {recipe!r}, but class {counts.tolist().index(0)} has no images; use "
            "'plain' or give it one"
        )
    for number, stage in enumerate(RECIPES[recipe], 1):
        prefix = "" if number == 1 else f"stage-{number}/"

        def draws(purpose: str, k: int, index: int, prefix: str = prefix) -> torch.Generator:
            return generators(prefix + purpose, k, index)

        how = replace(training, **stage.changes).under(stage.prior)
        given = {"generators": draws, "loss": stage.loss(counts), **options}
        if number == 1:
            given |= {"start_epoch": start_epoch, "kept": kept}
        if recipe == "glmc":
            twins = [doubled(net, draws("heads", k, 0)) for k, net in enumerate(networks)]
            given |= {"loss": CumulativeLoss(counts), "feed": Mixtures}
            train_many(twins, examples, how, **given)
            for net, twin in zip(networks, twins, strict=True):
                _take(net, twin.classifier.weight, twin.classifier.bias)
            continue
        parts = [_Prepared(net, stage, draws("weights", k, 0)) for k, net in enumerate(networks)]
        try:
            train_many(networks, examples, how, **given)
        finally:
            for part in parts:
                part.restore()


@torch.no_grad()
def _take(network: Network, weight: Tensor, bias: Tensor) -> None:
    network.to(weight)
    network.classifier.weight.copy_(weight), network.classifier.bias.copy_(bias)


class _Scaled(nn.Linear):
    """A linear classifier whose logits are multiplied by one number per class.

    Its own weights move ``rate`` times as fast as they would.
    """

    def __init__(self, own: nn.Linear, rate: float) -> None:
        with torch.device("meta"):  # nothing is drawn
            super().__init__(own.in_features, own.out_features)
        self.weight, self.bias, self.rate = own.weight, own.bias, rate
        self.scale = nn.Parameter(torch.ones_like(own.bias))

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits (b, C)."""
        weight, bias = (v.detach() + self.rate * (v - v.detach()) for v in (self.weight, self.bias))
        return nn.functional.linear(z, weight, bias) * self.scale


class _Resting(nn.Module):
    """A body in evaluation mode, whatever mode is asked for."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.eval()

    def train(self, mode: bool = True) -> _Resting:
        """Stay as it is."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return what the body does."""
        return self.body(x)


class _Prepared:
    """A network made ready for a stage, and what it was before."""

    def __init__(self, network: Network, stage: Stage, generator: torch.Generator) -> None:
        self.network, self.body, self.linear = network, network.body, network.classifier
        if stage.fresh:
            initialise(self.linear, generator)
        self.body.requires_grad_(stage.body)
        self.linear.requires_grad_(stage.classifier > 0)
        if not stage.body and not stage.measures:
            network.body = _Resting(self.body)
        if stage.scales:
            network.classifier = _Scaled(self.linear, stage.classifier)

    @torch.no_grad()
    def restore(self) -> None:
        """Multiply the scales in and give the parts back."""
        network = self.network
        if isinstance(network.classifier, _Scaled):
            scale = network.classifier.scale
            self.linear.weight.mul_(scale[:, None]), self.linear.bias.mul_(scale)
        network.body, network.classifier = self.body, self.linear
        network.requires_grad_(True)
