"""The long form of the fault tests: ``python tests/faults/torture.py [ROOM ...] [flags]``.

Prints one line per room: cases tried, outcomes by kind, failures, each with the way to see it
again (``--room`` words, ``--seed`` and ``--case``). Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ |= {"HF_HUB_OFFLINE": "1", "DATASETS_VERBOSITY": "critical"}

import ground  # noqa: E402
from cases import Case, trials  # noqa: E402

Make = Callable[..., Iterator[Case]]
ROOMS = {  # room: module, function, cases by default (0: all there are)
    "artifacts": ("test_artifacts", "cases", 22_000),
    "artifact-commands": ("test_artifacts", "command_cases", 200),
    "records": ("test_state_files", "record_cases", 2_000),
    "recipes": ("test_state_files", "recipe_cases", 1_000),
    "sources": ("test_damaged_sources", "cases", 10_000),
    "kills": ("test_kills", "cases", 0),
    "signals": ("test_signals", "cases", 210),
    "full-disk": ("test_full_disk", "cases", 200),
    "permissions": ("test_permissions", "cases", 0),
}


def rehearse(
    room: str, seed: int, count: int | None, only: int | None, minutes: float | None
) -> bool:
    """Go through one room; return whether all held that were tried."""
    module, function, default = ROOMS[room]
    make: Make = getattr(importlib.import_module(module), function)
    number = default if count is None else count
    numbers = range(number) if number else None
    root, began = Path(tempfile.mkdtemp(prefix="potstill-torture-")), time.monotonic()
    until = began + 60 * minutes if minutes else float("inf")
    try:
        with ground.environment(root):
            found = make(root, seed, numbers)
            chosen = (case for case in found if only is None or case.number == only)
            failed = lambda text: print(f"  FAILED {room} --seed {seed}: {text}", flush=True)  # noqa: E731
            tally = trials(chosen, failed, until)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{room} (seed {seed}, {time.monotonic() - began:.0f} s): {tally}", flush=True)
    return not tally.failures


def main() -> int:
    """Read the flags and go through the rooms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="per room, instead of its own number")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--minutes", type=float, help="per room at most")
    chosen = parser.parse_args()
    unknown = [room for room in chosen.rooms if room not in ROOMS]
    if unknown:
        parser.error(f"no room is called {unknown[0]}; there are {', '.join(ROOMS)}")
    ground.warm()
    how = chosen.seed, chosen.cases, chosen.case, chosen.minutes
    held = [rehearse(room, *how) for room in chosen.rooms or ROOMS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
