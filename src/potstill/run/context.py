"""The circumstances of one run: seed, device, precision, memory, folders.

Every random draw of the library comes from :meth:`Run.generator`, which derives an independent
generator from the run's seed, a purpose and any number of indices (a step, a network, a class).
Nothing is drawn from a generator that lives from step to step, so a run that resumes at step t
draws exactly what an uninterrupted run draws there, and nothing has to be stored for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from potstill.run.errors import InputError
from potstill.run.fields import NotNegative, OneOf, Positive, Seed, check_fields
from potstill.run.machine import cpu_has_bf16
from potstill.run.memory import Budget

__all__ = ["Circumstances", "Precision", "Run", "cache_folder"]

Precision = Annotated[str, OneOf("auto", "fp32", "bf16")]


def cache_folder() -> Path:
    """Folder for everything that can be rebuilt: ``$POTSTILL_CACHE`` or ``~/.cache/potstill``."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"
    return Path(os.environ.get("POTSTILL_CACHE", fallback))


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """On what something runs, and how carefully."""

    device: str = "auto"  # "auto" (first CUDA device, else CPU), "cpu", "cuda", "cuda:1"
    precision: Precision = "auto"  # frozen networks: "fp32" or "bf16"; auto = bf16 on CUDA only
    compile: bool = False  # torch.compile the feature networks
    memory_gb: Positive = 4.0  # budget of one step's activations and of images kept in memory
    checkpoint_seconds: NotNegative = 20.0  # a kill loses at most this much work; 0 = every step
    quiet: bool = False  # no progress bars, warnings only


@dataclass(frozen=True, kw_only=True)
class Run(Circumstances):
    """Where and how something runs; never what is computed.

    Two runs with equal ``seed`` give the same bytes on the same kind of CPU with the same number of
    threads, if ``memory_gb`` holds a step or cuts it alike. ``folder`` is where checkpoints and
    metrics go (``None``: keep nothing on disk).
    """

    seed: Seed = 0  # any non-negative integer below 2**63
    folder: Path | None = None
    cache: Path = field(default_factory=cache_folder)
    watch: Callable[[int, dict[str, Any], Any], None] | None = None  # (step, record, canvas)

    def __post_init__(self) -> None:
        check_fields(self)
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind, index = torch.device(device).type, torch.device(device).index or 0
        except RuntimeError:
            kind, index = "", 0
        if kind not in ("cpu", "cuda"):
            raise InputError(f"device is {self.device!r}; use 'auto', 'cpu' or 'cuda'")
        if kind == "cuda" and not index < torch.cuda.device_count():
            raise InputError(
                f"device is {self.device!r} but {torch.cuda.device_count()} CUDA devices are "
                "there; use 'auto' or 'cpu'"
            )
        object.__setattr__(self, "device", device)
        if self.precision == "bf16" and kind == "cpu" and not cpu_has_bf16():
            raise InputError(
                "precision is 'bf16' but this processor has no bf16 instructions, which makes it "
                "50 times slower; use 'fp32'"
            )
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if kind == "cuda" else "fp32")
        object.__setattr__(self, "cache", Path(self.cache))
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))

    @property
    def budget(self) -> Budget:
        """The shares of ``memory_gb``."""
        return Budget(self.memory_gb)

    @property
    def on_gpu(self) -> bool:
        """Whether tensors of this run live on a CUDA device."""
        return self.device.startswith("cuda")

    def generator(self, purpose: str, *index: int, device: str = "cpu") -> torch.Generator:
        """Return a fresh generator for one purpose, e.g. ``run.generator("augment", step)``.

        Equal arguments give equal streams; different purposes or indices give independent ones.
        """
        text = "/".join([str(self.seed), purpose, *map(str, index)])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        return torch.Generator(device=device).manual_seed(seed)

    def with_(self, **changes: Any) -> Run:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)
