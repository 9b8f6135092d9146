"""A GPU's first hour in one command: does it agree with the CPU, how fast is it, how far it gets.

In this order, each part a process with a time limit and a JSON file of its own in ``--out``: the
tests that need a GPU; one step of CSDM, LAD and SFM against the same step on the CPU; step ratios
against plain transcriptions of the published loops (CSDM, NCFM, LAD, SFM); students and experts
trained together against in turn; then whole table cells at the ``standard`` budget, CIFAR-10-LT at
factors 200 and 10 with 10 images per class (CSDM, SDM, NCFM, LAD, SFM). The last thing printed is a
table of them all, which with every record stands in ``summary.json``, too.

A second call with the same folder goes on: what has finished is not run again, distillations resume
from their checkpoints. To have a part measured anew, delete its JSON.

    python benchmarks/gpu.py --minutes 25 --out runs/gpu [--device auto] [--data FOLDER]
                             [--size auto] [--only PART [PART ...]]

``--data`` is CIFAR-10 as Parquet; without it the cells are of scikit-learn's digits at factors 50
and 10. ``--size small``, the default on a CPU, shows that everything runs and measures nothing; the
seconds in which a process starts, measured once, are then given to each part beyond ``--minutes``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from gpu_parts import ALL, HERE, plan
from in_parts import Part, run_parts, sole_user, standing, table, write_json

PROBE = """
import json, torch
from potstill.run.machine import describe
there = torch.cuda.is_available()
if there:
    torch.ones(8, device="cuda").sum().item()  # a driver that only says so is found out here
print(json.dumps({"gpu": there, **describe("cuda" if there else "cpu")}))
"""
PROBE_S = 120
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Refused(Exception):
    """Something that the caller can mend, in a sentence."""


def environment() -> dict[str, str]:
    """What parts need in theirs: this source tree, no hub, output at once."""
    path = os.pathsep.join([str(HERE.parent / "src"), *filter(None, [os.getenv("PYTHONPATH")])])
    return {
        "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip


def missing() -> list[str]:
    """Modules that some part needs and that are not there."""
    return [name for name in ALL if importlib.util.find_spec(name) is None]


def machine() -> dict[str, Any]:
    """Ask a process of its own what this machine is: a driver may hang.

    Raises:
        Refused: torch or the library cannot be imported, or the GPU does not answer.
    """
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S,
            env={**os.environ, **environment()},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused(f"the GPU does not answer within {PROBE_S} s; look at nvidia-smi") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Refused(f"torch and potstill cannot be used here ({last}); install what is missing")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"start_s": round(time.monotonic() - began, 1)}


def chosen(options: argparse.Namespace, gpu: bool) -> tuple[str, str, Path | None]:
    """Return device, size and data.

    Raises:
        Refused: the device, the data or time are not there.
    """
    device = ("cuda" if gpu else "cpu") if options.device == "auto" else options.device
    if device == "cuda" and not gpu:
        raise Refused("device is 'cuda' but torch finds no NVIDIA GPU; use --device cpu")
    if not options.minutes > 0:
        raise Refused(f"minutes is {options.minutes:g}; use more than 0")
    size = options.size
    if size == "auto":
        size = "full" if device == "cuda" else "small"
    if options.data and not options.data.exists():
        raise Refused(f"data is {options.data}, which does not exist; give a folder with CIFAR-10")
    return device, size, options.data.resolve() if options.data else None


def selected(parts: list[Part], names: list[str] | None) -> list[Part]:
    """The parts of these names, in the plan's order.

    Raises:
        Refused: there is no part of a name.
    """
    known = [part.name for part in parts]
    wrong = [name for name in names or [] if name not in known]
    if wrong:
        raise Refused(f"only is {wrong[0]!r}; use {', '.join(known)}")
    return [part for part in parts if names is None or part.name in names]


def ended(number: int, frame: Any) -> NoReturn:
    """A polite end: the part at work is ended, too, and what there is stands in the table."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)  # once is enough
    raise SystemExit(128 + number)


def hour(options: argparse.Namespace) -> int:
    """Run the plan; return the exit code: 0 if no part failed."""
    found = machine()
    device, size, data = chosen(options, found["gpu"])
    lacking = missing()
    folder = options.out.resolve()
    parts = plan(size, device, data, folder, lacking)
    wanted = selected(parts, options.only)
    about = {"device": device, "size": size, "minutes": options.minutes, "missing": lacking}
    about |= {"data": str(data or "digits"), "machine": found}
    print(json.dumps(about), flush=True)
    start = found["start_s"] if size == "small" else 0.0
    try:
        for record in run_parts(wanted, folder, options.minutes, environment(), start):
            print(f"{record['part']}: {record['state']}", flush=True)
            write_json(folder / "summary.json", {**about, "parts": standing(parts, folder)})
    finally:
        records = standing(parts, folder)
        write_json(folder / "summary.json", {**about, "parts": records})
        print(table(records), flush=True)
    return int(any(record["state"] == "failed" for record in records))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", choices=("auto", "full", "small"), default="auto")
    parser.add_argument("--only", nargs="+", metavar="PART")
    options = parser.parse_args()
    before = {number: signal.signal(number, ended) for number in ENDING}
    try:
        with sole_user(options.out):
            return hour(options)
    except BlockingIOError:
        said = f"out is {options.out}, where another call is at work; wait or choose another"
    except OSError as error:
        said = f"out is {options.out}, which cannot be used ({error.strerror}); choose another"
    except Refused as refusal:
        said = str(refusal)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"gpu.py: {said}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
