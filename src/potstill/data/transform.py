"""From RGB 0-1 to the space a network sees, and back: fitted on real data, saved with a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.data.images import ImageSet
from potstill.run import ArtifactError, InputError, nearest

__all__ = ["ZCA", "Normalize", "Transform", "transform_from"]

_CHUNK = 1 << 24  # pixel values converted at once while fitting

# Constants that published code uses, rounded as there (DC, DM, MTT and their successors).
# IDC, DREAM, NCFM and LAD use "cifar10" for CIFAR-100 too.
_PUBLISHED: dict[str, tuple[list[float], list[float]]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100": ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "svhn": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2861], [0.3530]),
}


class Transform(Protocol):
    """A fitted, invertible map between RGB 0-1 and network space, both float (b, c, h, w)."""

    kind: str

    def __call__(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`."""

    def forward(self, x: Tensor) -> Tensor:
        """RGB 0-1 to network space; differentiable."""

    def inverse(self, x: Tensor) -> Tensor:
        """Network space to RGB 0-1."""

    @property
    def step_share(self) -> float:
        """What a step size of network space is in RGB: one over the mean square of its gains."""

    def to_tensors(self) -> dict[str, Tensor]:
        """What :func:`transform_from` needs to build it again."""


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """Keeps one copy of each constant per device and dtype: no transfer inside a step."""

    _copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def _like(self, name: str, x: Tensor) -> Tensor:
        key = (name, x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = getattr(self, name).to(x.device, x.dtype)
        return self._copies[key]


@dataclass(frozen=True, eq=False)
class Normalize(_OnDevice):
    """Subtract the mean and divide by the standard deviation of each channel."""

    mean: Tensor  # float32 (c,), RGB 0-1
    std: Tensor  # float32 (c,), positive

    kind = "normalize"

    def __post_init__(self) -> None:
        _set_float32(self, "mean", "std")
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            raise InputError(f"mean and std have shapes {shapes}; give one value per channel")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and self.std.min() > 0):
            raise InputError(
                f"mean is {self.mean.tolist()} and std is {self.std.tolist()}; "
                "give finite numbers and a positive std"
            )

    @staticmethod
    def fit(real: ImageSet) -> Normalize:
        """Mean and population standard deviation of each channel of ``real``, exact sums.

        A channel without variance gets std 1.
        """
        levels = torch.arange(256)
        means, stds = [], []
        for channel in range(real.shape[0]):
            histogram = torch.zeros(256, dtype=torch.int64)
            for chunk in _chunks(real):
                histogram += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
            n, first = int(histogram.sum()), int((histogram * levels).sum())
            second = int((histogram * levels**2).sum())
            variance = (n * second - first * first) / (n * n)  # integers: no cancellation
            means.append(first / n / 255)
            stds.append(math.sqrt(variance) / 255 or 1.0)
        return Normalize(torch.tensor(means), torch.tensor(stds))

    @staticmethod
    def published(name: str) -> Normalize:
        """The constants that published code uses, e.g. ``Normalize.published("cifar10")``.

        Raises:
            InputError: no constants of that name.
        """
        if name not in _PUBLISHED:
            raise InputError(f"name is {name!r}{nearest(name, _PUBLISHED)}")
        mean, std = _PUBLISHED[name]
        return Normalize(torch.tensor(mean), torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """RGB 0-1 (b, c, h, w) to network space."""
        return (x - self._like("mean", x)[:, None, None]) / self._like("std", x)[:, None, None]

    __call__ = forward

    def inverse(self, x: Tensor) -> Tensor:
        """Network space (b, c, h, w) to RGB 0-1."""
        return x * self._like("std", x)[:, None, None] + self._like("mean", x)[:, None, None]

    @property
    def step_share(self) -> float:
        """The mean variance of a channel."""
        return float(self.std.double().square().mean())

    def to_tensors(self) -> dict[str, Tensor]:
        """``mean`` and ``std``, float32 (c,)."""
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True, eq=False)
class ZCA(_OnDevice):
    """Whitening of whole images: (x - mean) T with T = U (s + eps)^(-1/2) U^T.

    U diag(s) U^T is the covariance (n - 1 in the denominator) of flattened RGB 0-1 images. The
    usual eps of 0.1 is larger than most eigenvalues of natural images, so this is a high-pass
    filter more than a whitening (MTT, TESLA, LAD; kornia's ``ZCAWhitening``).
    """

    mean: Tensor  # float32 (chw,)
    matrix: Tensor  # float32 (chw, chw), T
    inverse_matrix: Tensor  # float32 (chw, chw), U (s + eps)^(1/2) U^T
    shape: tuple[int, int, int]  # (c, h, w)

    kind = "zca"

    def __post_init__(self) -> None:
        _set_float32(self, "mean", "matrix", "inverse_matrix")
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        size = math.prod(self.shape)
        good = len(self.shape) == 3 and min(self.shape) > 0 and self.mean.shape == (size,)
        if not (good and self.matrix.shape == self.inverse_matrix.shape == (size, size)):
            raise InputError(
                f"ZCA of shape {self.shape} has mean {tuple(self.mean.shape)}, matrix "
                f"{tuple(self.matrix.shape)}, inverse_matrix {tuple(self.inverse_matrix.shape)}; "
                f"give ({size},), ({size}, {size}) and ({size}, {size}) for shape (c, h, w)"
            )
        if not all(part.isfinite().all() for part in self.to_tensors().values()):
            raise InputError("ZCA tensors hold NaN or infinity; fit it again")

    @staticmethod
    def fit(real: ImageSet, eps: float = 0.1, device: str | torch.device = "cpu") -> ZCA:
        """Fit on ``real`` in float64, in chunks; memory (chw)^2, time (chw)^3 for ``eigh``.

        Raises:
            InputError: ``eps`` is not positive.
        """
        if not eps > 0:
            raise InputError(f"eps is {eps}; use a positive number such as 0.1")
        size = math.prod(real.shape)

        def chunks() -> Iterator[Tensor]:
            for part in _chunks(real):
                yield part.to(device).flatten(1).double().div_(255)

        mean = torch.zeros(size, dtype=torch.float64, device=device)
        for x in chunks():
            mean += x.sum(0)
        mean /= len(real)
        covariance = torch.zeros(size, size, dtype=torch.float64, device=device)
        for x in chunks():
            x -= mean
            covariance.addmm_(x.T, x)
        values, vectors = torch.linalg.eigh(covariance / max(1, len(real) - 1))
        root = (values.clamp_min(0) + eps).sqrt()
        matrix, inverse_matrix = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
        return ZCA(mean, matrix, inverse_matrix, real.shape)

    def forward(self, x: Tensor) -> Tensor:
        """RGB 0-1 (b, c, h, w) to network space."""
        flat = (x.flatten(1) - self._like("mean", x)) @ self._like("matrix", x)
        return flat.view(x.shape)

    __call__ = forward

    def inverse(self, x: Tensor) -> Tensor:
        """Network space (b, c, h, w) to RGB 0-1."""
        flat = x.flatten(1) @ self._like("inverse_matrix", x) + self._like("mean", x)
        return flat.view(x.shape)

    @property
    def step_share(self) -> float:
        """One over the mean square of the matrix's singular values."""
        return len(self.matrix) / float(self.matrix.double().square().sum())

    def to_tensors(self) -> dict[str, Tensor]:
        """Mean, both matrices and ``shape`` as int64 (3,)."""
        parts = {"mean": self.mean, "matrix": self.matrix, "inverse_matrix": self.inverse_matrix}
        return {**parts, "shape": torch.tensor(self.shape)}


def transform_from(kind: str, tensors: Mapping[str, Tensor]) -> Transform:
    """Build a transform from what ``to_tensors`` gave; never trusts its input.

    Raises:
        ArtifactError: unknown kind, or tensors that are missing, superfluous or of wrong shape.
    """
    makers: dict[str, tuple[Callable[..., Transform], set[str]]] = {
        "normalize": (Normalize, {"mean", "std"}),
        "zca": (ZCA, {"mean", "matrix", "inverse_matrix", "shape"}),
    }
    if kind not in makers:
        raise ArtifactError(f"transform kind is {kind!r}{nearest(str(kind), makers)}")
    make, names = makers[kind]
    if set(tensors) != names:
        raise ArtifactError(
            f"transform {kind!r} has tensors {sorted(tensors)}; it needs {sorted(names)}"
        )
    parts: dict[str, Any] = dict(tensors)
    for name, part in parts.items():
        floating = name != "shape"
        if not isinstance(part, Tensor) or part.is_floating_point() != floating:
            raise ArtifactError(f"tensor {name!r} of transform {kind!r} has the wrong type")
    if "shape" in parts:
        parts["shape"] = tuple(parts["shape"].flatten().tolist())
    try:
        return make(**parts)
    except InputError as error:
        raise ArtifactError(f"transform {kind!r} is damaged: {error}") from error


def _chunks(real: ImageSet) -> Iterator[Tensor]:
    """The images in views of at most ``_CHUNK`` values (and at least one image)."""
    size = max(1, _CHUNK // math.prod(real.shape))
    return (real.rows(slice(first, first + size)) for first in range(0, len(real), size))


def _set_float32(owner: object, *names: str) -> None:
    for name in names:
        value = torch.as_tensor(getattr(owner, name)).detach().to("cpu", torch.float32)
        object.__setattr__(owner, name, value)
