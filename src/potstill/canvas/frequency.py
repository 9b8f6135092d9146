"""Images as a few coefficients of their cosine transform (FreD, NeurIPS 2023, arXiv 2311.08819).

    F = D_h X D_wᵀ,    X = D_hᵀ F D_w

with the orthonormal DCT-II D over rows and over columns, channel by channel. All images of a class
keep the same k positions of F, in every channel: those whose values vary most over the class's
images. In the numbers of one image there is room for h w / k such images.

D is orthonormal here, and FreD's is not: its learning rate η becomes η / 4hw for coefficients with
neither index 0, η / 8hw with one, η / 16hw for the mean. One rate serves all of them here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from potstill.run import InputError

__all__ = [
    "cosine_basis",
    "from_coefficients",
    "from_spectrum",
    "images_for",
    "leading_coefficients",
    "spectrum",
    "stored_bytes",
    "to_coefficients",
]

_STILL = 1e-12  # share of the energy below which variance is rounding


@lru_cache(maxsize=32)
def cosine_basis(
    n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the orthonormal DCT-II matrix (n, n), frequencies in rows.

    D_ki = √(2/n) cos(π k (2i + 1) / 2n), and √(1/n) for k = 0. The same tensor at every call.
    """
    place = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / (2 * n) * place[:, None] * (2 * place + 1)) * math.sqrt(2 / n)
    basis[0] = math.sqrt(1 / n)
    return basis.to(device, dtype)


def leading_coefficients(images: Tensor, keep: int) -> Tensor:
    """Return the positions (keep,) int64 of a class's coefficients in which its images vary most.

    The variance over images of the coefficients of their channel mean, largest first; of equal
    ones the lower position. A position is row * w + column of the spectrum. Where images do not
    differ (a class of one image), the coefficients with most energy are taken instead.

    Args:
        images: (n, c, h, w) float, at least one. keep: from 1 to h w.

    Raises:
        InputError: no image, or more coefficients than there are.
    """
    if not len(images):
        raise InputError("images has none of the class; give at least one")
    _check_keep(keep, images.shape[-2] * images.shape[-1])
    values = spectrum(images.detach().double().mean(1)).flatten(1)
    energy = values.square().mean(0)
    score = (values - values.mean(0)).square().mean(0)
    if not float(score.sum()) > _STILL * float(energy.sum()):
        score = energy
    return score.argsort(descending=True, stable=True)[:keep]


def to_coefficients(images: Tensor, positions: Tensor) -> Tensor:
    """Return the coefficients (n, c, k) of images (n, c, h, w); differentiable.

    The adjoint of :func:`from_coefficients`, and its inverse on what that makes.

    Args:
        positions: (k,) for all images, or (n, k) for each; none twice.

    Raises:
        InputError: positions outside the spectrum, or of another number of images.
    """
    h, w = images.shape[-2:]
    _check_positions(positions, len(images), h * w)
    return spectrum(images).flatten(2).gather(2, _index(positions, images))


def from_coefficients(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the images (n, c, h, w) of some coefficients, all others 0; differentiable.

    Args:
        values: (n, c, k). positions: (k,) for all images, or (n, k) for each; none twice.
        shape: (h, w).

    Raises:
        InputError: positions outside the spectrum, or that do not fit the values.
    """
    h, w = shape
    _check_positions(positions, len(values), h * w)
    if positions.shape[-1] != values.shape[2]:
        raise InputError(
            f"positions has {positions.shape[-1]} per image and values {values.shape[2]}; make "
            "them equal"
        )
    blank = values.new_zeros(*values.shape[:2], h * w)
    return from_spectrum(blank.scatter(2, _index(positions, values), values).unflatten(2, (h, w)))


def images_for(ipc: int, keep: int, shape: tuple[int, int]) -> int:
    """Return how many images of a class fit into the numbers of ``ipc`` whole ones, at least 1.

    ``ipc`` h w / ``keep``, rounded down, as FreD counts: positions are not paid for; see
    :func:`stored_bytes`.

    Raises:
        InputError: ``keep`` is no number of coefficients of such an image.
    """
    _check_keep(keep, shape[0] * shape[1])
    return ipc * shape[0] * shape[1] // keep


def stored_bytes(
    images: int, classes: int, channels: int, keep: int, shape: tuple[int, int]
) -> int:
    """Return the bytes of float32 values and of the positions that each class keeps.

    A position takes 1 byte in images of up to 256 pixels, 2 in those of up to 65536, else 4.

    Args:
        images: of all classes. channels: of each. keep: coefficients of a channel.
    """
    pixels = shape[0] * shape[1]
    place = 1 if pixels <= 2**8 else 2 if pixels <= 2**16 else 4
    return 4 * images * channels * keep + place * classes * keep


def spectrum(images: Tensor) -> Tensor:
    """Return all coefficients of images (..., h, w)."""
    rows, columns = (cosine_basis(side, images.dtype, images.device) for side in images.shape[-2:])
    return rows @ images @ columns.T


def from_spectrum(values: Tensor) -> Tensor:
    """Return the images (..., h, w) of all their coefficients: adjoint and inverse."""
    rows, columns = (cosine_basis(side, values.dtype, values.device) for side in values.shape[-2:])
    return rows.T @ values @ columns


def _index(positions: Tensor, like: Tensor) -> Tensor:
    """Positions as (n, c, k) on the device of ``like`` (n, c, ...)."""
    own = positions.to(like.device, torch.int64)
    own = own if own.ndim == 2 else own[None]
    return own[:, None].expand(len(like), like.shape[1], -1)


def _check_keep(keep: int, pixels: int) -> None:
    if not 1 <= keep <= pixels:
        raise InputError(f"keep is {keep}; use a number of coefficients from 1 to {pixels}")


def _check_positions(positions: Tensor, n: int, pixels: int) -> None:
    if positions.ndim not in (1, 2) or (positions.ndim == 2 and len(positions) != n):
        raise InputError(
            f"positions has shape {tuple(positions.shape)} for {n} images; use (k,) or ({n}, k)"
        )
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < pixels:
        raise InputError(f"positions leave the spectrum; use numbers from 0 to {pixels - 1}")
