"""The run: seeds, devices, checkpoints, logs and the one loop that serves every matching method."""

from potstill.run.context import Run, cache_folder
from potstill.run.errors import (
    ArtifactError,
    DivergedError,
    InputError,
    PotstillError,
    StorageError,
    nearest,
)
from potstill.run.log import logger, progress

__all__ = [
    "ArtifactError",
    "DivergedError",
    "InputError",
    "PotstillError",
    "Run",
    "StorageError",
    "cache_folder",
    "logger",
    "nearest",
    "progress",
]
