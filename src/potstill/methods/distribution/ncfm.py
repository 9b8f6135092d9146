"""NCFM: Neural Characteristic Function Matching (Wang et al., CVPR 2025, arXiv 2502.20653).

    min_S max_psi (1/C) sum_c E_{w ~ p_psi} sqrt( alpha A + beta P )    (eq. 8; A, P as in CSDM)

Released form (``sampling_network=False``, all shipped configurations): 4096 i.i.d. Gaussian
frequencies, that is SDM with an RBF kernel of length 1, the root per frequency and alpha = beta =
0.5. Paper's form (``sampling_network=True``): psi maps noise to the per-axis scales of T/16 normal
laws, 16 frequencies are drawn from each, psi climbs the same loss that the images descend.

Deviations: the real side uses all images of a class (the released sampler always returns the first
1024), one step of all classes replaces 2C per-class AdamW steps, no weight decay on pixels; psi as
the paper intends (the released call yields four distinct frequencies); its mean scale is kept
within (1/4, 4) of 1 so that it cannot run to frequencies where both sides are noise.
Recipe: recipes/ncfm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.experts.real_statistics import Entry
from potstill.match.spectral import characteristic, segment_mean, spectral_distance
from potstill.methods.base import MethodInfo
from potstill.methods.distribution.sdm import SDM
from potstill.run import InputError, Run
from potstill.run.fields import Inside, Positive
from potstill.run.loop import Term

__all__ = ["NCFM"]

_DRAWS = 16  # frequencies per mixture component (paper sec. 4.1)
_NOISE = 64  # dimension of the noise that psi maps


@dataclass(kw_only=True)
class NCFM(SDM):
    """Match characteristic functions with one amplitude weight, optionally against an adversary."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ncfm",
        title="Neural Characteristic Function Matching",
        paper="Wang et al., CVPR 2025",
        year=2025,
        arxiv="2502.20653",
        family="distribution matching",
        labels="hard",
        long_tail="per-class distributions; calibration as published ignores the prior",
        cost="as SDM; with the sampling network real features stay in memory",
    )
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"standard": {"frequencies": 2048}}

    schedule: str = "plateau"  # halved after 500 steps without improvement
    length: float = 1.0  # N(0, I) frequencies
    frequencies: int = 4096  # released configurations; the paper says 1024
    orthogonal: bool = False  # i.i.d.
    calibration_prior: str = "none"  # as published
    alpha: Inside = 0.5  # amplitude weight of every class; phase weighs 1 - alpha
    sampling_network: bool = False  # the min-max form; needs real_side = "features"
    lr_sampler: Positive = 1e-3  # Adam step size of psi

    def check(self, real: ImageSet | None = None) -> None:
        """Check that frequencies are compared, and as the sampling network needs it."""
        super().check(real)
        if not self.spectral:
            raise InputError(
                f"estimator is {self.estimator!r} and kernel is {self.kernel!r}, but NCFM compares "
                "frequencies; use estimator=frequencies and kernel=rbf, or method sdm"
            )
        if self.sampling_network and self.real_side != "features":
            raise InputError(
                f"real_side is {self.real_side!r} with a sampling network, whose frequencies "
                "change at every step; use real_side=features"
            )

    def prepare(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Make psi where asked for."""
        super().prepare(real, canvas, run)
        if self.sampling_network:
            self.psi_ = _Sampler(self.eye_.dim, run.generator("psi")).to(run.device)
            self.climb_ = torch.optim.Adam(
                self.psi_.parameters(), lr=self.lr_sampler, maximize=True
            )
            self.seen_: list[tuple[Tensor, Tensor]] = []
            self.entry_: Entry

    def amplitude_weights(self, real: ImageSet) -> Tensor:
        """The same weight for every class."""
        return torch.full((real.num_classes,), self.alpha)

    def frequencies_at(self, number: int, dim: int) -> Tensor | None:
        """Fixed law, or what psi proposes at this step."""
        if not self.sampling_network:
            return super().frequencies_at(number, dim)
        with torch.no_grad():
            return self._propose(number)

    def _propose(self, step: int) -> Tensor:
        components = max(1, self.frequencies // _DRAWS)
        draw = self.run_.generator("psi/noise", step)
        noise = torch.randn(components, _NOISE, generator=draw).to(self.run_.device)
        normals = torch.randn(components, _DRAWS, self.eye_.dim, generator=draw).to(
            self.run_.device
        )
        return (self.psi_(noise)[:, None] * normals).flatten(0, 1) / self.length_

    def gap(self, entry: Entry, features: Tensor, labels: Tensor, first: int, last: int) -> Term:
        """As SDM; psi will need the features."""
        if self.sampling_network:
            self.entry_ = entry
            self.seen_.append((features.detach(), labels + first))
        return super().gap(entry, features, labels, first, last)

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """As SDM; then one step up for psi on the features just seen."""
        if not self.sampling_network:
            yield from super().terms(step, canvas, chunk)
            return
        self.seen_.clear()  # a step that ran out of memory is run again
        yield from super().terms(step, canvas, chunk)
        self._climb(step)

    def _climb(self, step: int) -> None:
        entry = self.entry_
        assert entry.bank is not None and entry.bank_labels is not None
        frequencies = self._propose(step)
        features, labels = (torch.cat(part) for part in zip(*self.seen_, strict=True))
        rows = self._real_rows(step).to(entry.bank.device)
        real = characteristic(entry.bank[rows].float(), frequencies)
        a = segment_mean(real, entry.bank_labels[rows], self.classes_)
        b = segment_mean(characteristic(features, frequencies), labels, self.classes_)
        gain = spectral_distance(a, b, self.alpha_, power=self.power).mean()
        self.climb_.zero_grad(set_to_none=True)
        gain.backward()
        nn.utils.clip_grad_norm_(self.psi_.parameters(), 1.0)
        self.climb_.step()

    def _real_rows(self, step: int) -> Tensor:
        """Rows of the class-sorted bank that psi sees: up to 128 of each class, a small one whole.

        Equal shares of the bank would leave two images of a tail class, whose sampling noise psi
        would then climb.
        """
        draw = self.run_.generator("psi/real", step)
        most = self.batch_real or max(self.counts_)
        rows, start = [], 0
        for count in self.counts_:
            count = min(count, most)
            rows.append(start + torch.randperm(count, generator=draw)[:128])
            start += count
        return torch.cat(rows)

    def state(self) -> dict[str, Tensor]:
        """Weights of psi and of its optimiser."""
        if not self.sampling_network:
            return {}
        packed = {f"psi/{name}": value for name, value in self.psi_.state_dict().items()}
        for index, slots in self.climb_.state_dict()["state"].items():
            packed |= {f"climb/{index}/{name}": value for name, value in slots.items()}
        return packed

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put psi and its optimiser back."""
        if not self.sampling_network:
            return
        self.psi_.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("psi/")})
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("climb/"):
                _, index, slot = name.split("/")
                slots.setdefault(int(index), {})[slot] = value
        self.climb_.load_state_dict({**self.climb_.state_dict(), "state": slots})


class _Sampler(nn.Module):
    """psi: noise (m, 64) -> positive scales (m, d) with mean within (1/4, 4), first all about 1."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = [(256, _NOISE), (256, 256), (dim, 256)]
        self.weights = nn.ParameterList(
            torch.randn(shape, generator=generator) * (1 / shape[1]) ** 0.5 for shape in shapes
        )
        self.weights[-1].data.mul_(0.01)
        self.biases = nn.ParameterList(torch.zeros(shape[0]) for shape in shapes)

    def forward(self, noise: Tensor) -> Tensor:
        """Return scales (m, d)."""
        hidden = noise
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = nn.functional.leaky_relu(hidden @ weight.T + bias, 0.2)
        raw = nn.functional.softplus(hidden @ self.weights[-1].T + self.biases[-1] + 0.5413)
        mean = raw.mean()
        return raw * (mean.clamp(0.25, 4.0) / mean)
