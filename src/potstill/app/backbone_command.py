"""The command ``potstill backbone``: train a small backbone without labels, or look at one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from potstill.app.flags import FLAT, Machine, data_flags, parse
from potstill.data.reading import Channels, Side
from potstill.run.errors import InputError, nearest
from potstill.run.fields import Seed

__all__ = ["command"]

_USAGE = """usage:
  potstill backbone train --data SOURCE --out DIR [flags]   train one without labels
  potstill backbone show NAME                               what a backbone takes and gives
  potstill backbone names                                   short names of pre-trained ones

The folder that train writes can be named wherever a backbone is asked for. Besides short names:
timm:MODEL, timm-random:MODEL, transformers:MODEL, a folder, one of our own networks (random), and
self:NETWORK, which is trained on the data at hand."""


def command(words: list[str]) -> str:
    """Run the command; return what it prints."""
    kinds = {"train": _train, "show": _show, "names": _names}
    if not words or words[0] in ("-h", "--help"):
        return _USAGE
    if words[0] not in kinds:
        raise InputError(f"potstill backbone is followed by {words[0]!r}{nearest(words[0], kinds)}")
    return kinds[words[0]](words[1:])


@dataclass(kw_only=True)
class _Train:
    """Where to, and from which seed."""

    out: Path  # folder of the backbone; a killed training goes on there
    seed: Seed = 0  # every random draw descends from it


def _train(words: list[str]) -> str:
    """Train a backbone on the train split of a source; a linear probe says what it is worth."""
    from potstill.experts.selfsupervised import SelfSupervision, train_backbone
    from potstill.nets.backbone import FILE
    from potstill.run import logger

    data = data_flags({f.name for f in fields(SelfSupervision)})
    options = make_dataclass(
        "Options",
        [
            ("job", Annotated[_Train, FLAT]),
            ("how", Annotated[SelfSupervision, FLAT], field(default_factory=SelfSupervision)),
            ("data", Annotated[data, FLAT], field(default_factory=data)),
            ("machine", Annotated[Machine, FLAT], field(default_factory=Machine)),
        ],
        kw_only=True,
    )
    options.__doc__ = "Train a small backbone without labels (SimCLR or Barlow Twins)."
    with parse(options, words, "backbone train") as chosen:
        run = chosen.machine.run(chosen.job.seed)
        train, _, _ = chosen.data.open(run)
        there = (chosen.job.out / FILE).is_file()
        found = train_backbone(train, chosen.how, run, chosen.job.out)
        if there:
            logger.info("%s is trained already; nothing to do", chosen.job.out)
        return (
            f"{found.label}: {found.dim} features, key {found.key} -> {chosen.job.out}\n"
            f"next: potstill distill sfm --backbone {chosen.job.out} --data {chosen.data.data} "
            "--ipc 10 --out runs/sfm"
        )


@dataclass(kw_only=True)
class _Shown:
    """Say what a backbone takes and gives."""

    name: tyro.conf.Positional[str]  # short name, timm:, transformers:, folder, or own network
    image_size: Side = 32  # of own networks, which take any size
    channels: Channels = 3


def _show(words: list[str]) -> str:
    import torch

    from potstill.data.transform import Normalize
    from potstill.nets.backbone import open_backbone
    from potstill.reports.table_text import size

    with parse(_Shown, words, "backbone show") as chosen:
        if chosen.name.startswith("self:"):
            raise InputError(
                f"name is {chosen.name!r}, which has to be trained on some data first; use "
                "potstill backbone train and give its folder"
            )
        shape = (chosen.channels, chosen.image_size, chosen.image_size)
        plain = Normalize(torch.full((chosen.channels,), 0.5), torch.full((chosen.channels,), 0.25))
        found = open_backbone(chosen.name, shape, torch.Generator().manual_seed(0), plain)
        facts: dict[str, Any] = {
            "backbone": found.label,
            "input": f"{found.channels} x {found.size[0]} x {found.size[1]}",
            "features": found.dim,
            "mean": ", ".join(f"{value:.4f}" for value in found.transform.mean.tolist()),
            "std": ", ".join(f"{value:.4f}" for value in found.transform.std.tolist()),
            "weights": size(found.nbytes),
            "graph of one image": size(found.image_bytes()),
            "key": found.key,
        }
        return "\n".join(f"{name:20s}{value}" for name, value in facts.items())


def _names(words: list[str]) -> str:
    from potstill.nets.backbone import BACKBONES
    from potstill.reports.table_text import plain

    if words:
        raise InputError(f"potstill backbone names is followed by {words[0]!r}; it takes no flags")
    return plain([{"name": name, "weights": place} for name, place in BACKBONES.items()])
