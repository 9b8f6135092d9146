"""What the machine can do and how to get it: allocator, threads, bf16, peak memory.

The measurements behind each choice are printed by ``benchmarks/machine.py``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ["CPU_CHUNK", "cpu_has_bf16", "describe", "peak_memory_gb", "tune_allocator"]

CPU_CHUNK = 64  # images per no-grad pass on a CPU: the working set stays near the last-level cache


def tune_allocator() -> bool:
    """Keep large freed blocks in the process (glibc only); return whether it was possible.

    glibc maps every block above 32 MB afresh and pays one page fault per 4 KB for it, which costs a
    factor of up to two in batched network passes. ``POTSTILL_TUNE_MALLOC=0`` switches this off.
    """
    if os.environ.get("POTSTILL_TUNE_MALLOC") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8
        pairs = [(mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20), (arena_max, 1)]
        return all(libc.mallopt(name, value) == 1 for name, value in pairs)
    except (OSError, AttributeError):
        return False


def cpu_has_bf16() -> bool:
    """Whether the processor computes in bf16 (AVX512-BF16 or AMX); without, it crawls."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_processor("flags").split())


def peak_memory_gb(device: str) -> float:
    """Peak memory in GB (1e9 bytes) so far: allocated on a CUDA device, resident on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _processor(name: str) -> str:
    """What Linux says of the first processor under a name; "" where it says nothing."""
    with suppress(OSError, StopIteration), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    return ""


def describe(device: str) -> dict[str, Any]:
    """Return device, threads and versions for the provenance of a result."""
    import numpy

    from potstill import __version__

    own = _processor("model name") or platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else own,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "potstill": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }
