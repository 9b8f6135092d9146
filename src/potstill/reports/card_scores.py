"""Scores into the data set card: README.md of an artifact is written again after an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from potstill.reports.source import read_run
from potstill.run.checkpoint import write_bytes, write_json
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import PROVENANCE, find
from potstill.synthetic.card import card

__all__ = ["refresh_card", "write_card"]


def write_card(folder: str | Path) -> Path:
    """Put the scores of a run (``scores.json``) into its artifact's provenance and README.md.

    Images, labels and the checksum stay as they are. Returns the path of the card.

    Raises:
        ArtifactError: the artifact is damaged. StorageError: cannot write.
    """
    run = read_run(folder)
    place = find(Path(folder))
    synthetic = SyntheticSet.load(place)
    if run.scores:
        synthetic = replace(synthetic, provenance=synthetic.provenance | {"scores": run.scores})
    path = place / "README.md"
    write_bytes(path, card(synthetic, place.name).encode("utf-8", "replace"))
    if run.scores:  # last: where they stand here, they stand in the card
        write_json(place / PROVENANCE, run.provenance | {"scores": run.scores})
    return path


def refresh_card(folder: str | Path) -> None:
    """Write the card where it lacks scores of the run: a kill came between the two."""
    run = read_run(folder)
    if run.provenance.get("scores", []) != run.scores:
        write_card(folder)
