"""What a report reads: the files of a run folder, checked as far as a page relies on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.data.longtail import Imbalance
from potstill.evaluation.record import fault, part
from potstill.run import ArtifactError, InputError
from potstill.run.log import read as read_lines
from potstill.run.records import read_json
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import TENSORS

__all__ = ["RunFolder", "part", "read_run", "stored"]

_FIX = "restore it, or delete it and run again"


@dataclass(frozen=True)
class RunFolder:
    """The facts of one run, as they stand on disk; whatever is missing is empty."""

    folder: Path
    status: str = ""  # "running", "finished", or "" for an artifact without a run
    job: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)  # oldest first
    provenance: dict[str, Any] = field(default_factory=dict)
    preview: Path | None = None  # stored images
    real: Path | None = None  # real images laid out alike
    pictures: tuple[Path, ...] = ()  # on the way, in order of steps
    newer: str = ""  # why run.json does not tell of this artifact, if it does not

    @property
    def artifact(self) -> dict[str, Any]:
        """What provenance.json says about the tensors: checksum, images, label_tier, bytes."""
        return part(self.provenance, "artifact")

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the real data: the provenance, and what the job asked for."""
        asked = {k: v for k, v in part(self.job, "data").items() if v is not None}
        return {"source": asked.get("data")} | asked | part(self.provenance, "data")

    @property
    def asked_cut(self) -> dict[str, Any]:
        """The cut that the job asked for, as in a set's history; {} where it asked for none."""
        asked = part(self.job, "data")
        factor = asked.get("imbalance_factor")
        if not isinstance(factor, (int, float)) or factor <= 1:
            return {}
        profile = asked.get("profile", "exponential")
        return {"op": "long_tailed", "imbalance_factor": factor, "profile": profile}

    @property
    def imbalance(self) -> Imbalance | None:
        """How uneven the real set is and what it was cut to; None where its sizes are unknown."""
        if not self.counts:
            return None
        history = part(self.provenance, "data").get("history")
        return Imbalance.of(self.counts, [self.asked_cut] if history is None else history)

    @property
    def chosen(self) -> bool:
        """Whether the set is real images that a method chose: nothing in it was learned."""
        return part(self.provenance, "method").get("family") == "selection"

    @property
    def method(self) -> str:
        """Name of the method, or ""."""
        name = self.job.get("method") or self.provenance.get("method") or ""
        return str(name.get("name", "")) if isinstance(name, Mapping) else str(name)

    @property
    def device(self) -> str:
        """What the run was made on, or ""."""
        return str(
            self.provenance.get("device") or part(self.provenance, "run").get("device") or ""
        )

    @property
    def ipc(self) -> Any:
        """Stored images per class, or None."""
        return self.job.get("ipc", self.provenance.get("ipc"))

    @property
    def counts(self) -> list[int]:
        """Real training images per class, or []."""
        return next((c for c in self._known("counts", "train_counts") if _numbers(c)), [])

    @property
    def classes(self) -> list[str]:
        """Class names by label, or []."""
        for names in self._known("classes", "classes"):
            if isinstance(names, list) and names:
                return [str(name) for name in names]
        return [str(label) for label in range(len(self.counts))]

    def _known(self, in_data: str, in_score: str) -> list[Any]:
        last = self.scores[-1] if self.scores else {}
        return [part(self.provenance, "data").get(in_data), last.get(in_score)]


def read_run(folder: str | Path) -> RunFolder:
    """Read the folder of a run, or of a saved synthetic set.

    Scores of the run have to be of the right types; of those that came with the provenance, which
    anybody may have written, the others are left out.

    Raises:
        InputError: there is neither. ArtifactError: a file in it is damaged.
    """
    folder = Path(folder).expanduser()
    inside = folder / "synthetic" if (folder / "synthetic").is_dir() else folder
    run = read_json(folder / "run.json", _FIX, missing={})
    if not run and not (inside / TENSORS).is_file():
        what = "holds neither a run nor a synthetic set" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; give the folder that `potstill distill` wrote")
    provenance = read_json(inside / "provenance.json", _FIX, missing={})
    scores = _scores(folder / "scores.json", provenance.get("scores"))
    checksum = part(provenance, "artifact").get("checksum")
    preview, newer = _file(inside / "preview.png"), _newer(run, checksum)
    found = RunFolder(folder, scores=scores, provenance=provenance, preview=preview, newer=newer)
    if newer:  # everything is about the artifact that is there; the newer job has none yet
        own = [r for r in scores if r.get("artifact") in (None, checksum)]
        return replace(found, scores=own)
    metrics, pictures = folder / "metrics.jsonl", folder / "pictures"
    return replace(
        found,
        status=str(run.get("status", "")),
        job=part(run, "job"),
        metrics=read_lines(metrics) if metrics.is_file() else [],
        real=_file(pictures / "real.png"),
        pictures=tuple(sorted(pictures.glob("step-*.png"))),
    )


def stored(run: RunFolder) -> SyntheticSet | None:
    """Return the artifact of a run with its tensors, None where there is none yet.

    Raises:
        ArtifactError: the file of the tensors is damaged.
    """
    places = (run.folder / TENSORS, run.folder / "synthetic" / TENSORS)
    return SyntheticSet.load(run.folder) if any(place.is_file() for place in places) else None


def _newer(run: Mapping[str, Any], checksum: Any) -> str:
    """A sentence where ``run.json`` tells of another job than the artifact there came from."""
    if not run or checksum is None:
        return ""
    if run.get("status") != "finished":
        return "A newer run in this folder is not finished; this page is about the artifact before."
    if run.get("artifact") not in (None, checksum):
        return "The last run in this folder made another artifact than the one this page is about."
    return ""


def _scores(path: Path, travelled: Any) -> list[dict[str, Any]]:
    """Records in ``scores.json``, else those of the provenance; each has an accuracy."""
    own = read_json(path, _FIX, missing={}).get("scores")
    if own is None:
        known = travelled if isinstance(travelled, list) else []
        return [r for r in known if not fault(r) and "accuracy" in r]
    if not isinstance(own, list):
        raise ArtifactError(f"{path} is damaged (scores is no list); {_FIX}")
    for number, record in enumerate(own, 1):
        wrong = fault(record)
        if wrong:
            raise ArtifactError(f"{path} is damaged (record {number}: {wrong}); {_FIX}")
    return [record for record in own if "accuracy" in record]


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, int) for n in value)


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None
