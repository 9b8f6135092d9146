"""Defaults that suit the machine and the set."""

from __future__ import annotations

import contextlib
from pathlib import Path

from potstill.run.errors import InputError, nearest

__all__ = ["default_budget", "default_student", "suiting"]


def default_budget(words: list[str]) -> str:
    """Budget named on the command line; otherwise what suits the device."""
    from potstill.methods import BUDGETS

    for index, word in enumerate(words):
        name = word.partition("=")[2] if word.startswith("--budget=") else None
        if word == "--budget" and index + 1 < len(words):
            name = words[index + 1]
        if name is not None:
            if name not in BUDGETS:
                raise InputError(f"--budget is {name!r}{nearest(name, BUDGETS)}")
            return name
    import torch

    return "standard" if torch.cuda.is_available() else "quick"


def default_student(learned_lr: bool = False, backbone: bool = False) -> tuple[str, str]:
    """Network and protocol that suit the machine and the set.

    Sets with a learned student step size and those that a backbone distilled have their own.
    """
    import torch

    if backbone:
        return "same", "probe"
    gpu = torch.cuda.is_available()
    fitting = {True: ("lad-quick", "lad"), False: ("quick", "default")}
    return ("convnet-w128-in" if gpu else "convnet-w32-in"), fitting[learned_lr][gpu]


def suiting(
    folder: Path, networks: list[str] | None, protocol: str | None
) -> tuple[list[str], str]:
    """Complete what was not said about an evaluation by what suits the set in ``folder``."""
    if networks is not None and protocol is not None:
        return networks, protocol
    from potstill.evaluation import Probe, find_protocol
    from potstill.synthetic import SyntheticSet

    learned = backbone = False
    with contextlib.suppress(InputError):  # evaluation says what is wrong with the folder
        syn = SyntheticSet.load(folder)
        learned, backbone = syn.syn_lr is not None, "backbone" in syn.provenance
    if protocol is not None:
        backbone = isinstance(find_protocol(protocol), Probe)
    network, suits = default_student(learned, backbone)
    return [network] if networks is None else networks, protocol or suits
