"""Score records: what one score says about itself, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from potstill.run import ArtifactError
from potstill.run.checkpoint import write_json

__all__ = ["Result", "Score", "part", "read_scores", "write_scores"]


def part(facts: Any, key: str) -> dict[str, Any]:
    """Return ``facts[key]`` where it is a mapping, else {}: facts may come from anybody."""
    value = facts.get(key) if isinstance(facts, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


Result = dict[str, Any]  # accuracy, balanced, per_class, groups; "last" and "epochs" if selected


@dataclass(frozen=True, kw_only=True)
class Score:
    """One artifact under one protocol with one student network; accuracies in percent."""

    network: str  # in full, with the depth that suits the images; under a probe the backbone
    protocol: dict[str, Any]  # name, hash, description and all fields
    label_tier: str  # one of TIERS
    runs: int
    seed: int
    artifact: str  # checksum of the synthetic set
    accuracy: dict[str, Any]  # over test images: mean, std (n - 1), values
    balanced: dict[str, Any]  # over classes: mean, std, values
    per_class: dict[str, Any]  # mean [C], std [C]
    groups: dict[str, Any]  # "head", "medium", "tail": mean, std; empty for balanced real sets
    classes: list[str]
    train_counts: list[int]
    seconds: float  # of training and testing the students on the artifact
    receiver_bytes: int
    device: str
    threads: int
    date: str  # YYYY-MM-DD
    test: dict[str, Any]  # source, images, sentence
    last: dict[str, Any] | None = None  # accuracy after the last epoch, if another one was selected
    epochs: list[int] | None = None  # the epoch selected in each run, if not the last
    quantized: Result | None = None  # the 8-bit view
    random: Result | None = None  # random real images, as many
    full: dict[str, Any] | None = None  # all real images, with their own "protocol"
    test_checksum: str = ""  # of the test set; "" in files of older versions
    train_checksum: str = ""  # of the real set that groups and references come from
    iterates: dict[str, Any] | None = None  # step of the best iterate, number of looks, accuracies
    backbone: dict[str, Any] | None = None  # under a probe: label, key, name, whether it distilled
    inherited: Result | None = None  # the sender's classifier, see Heir.inherited
    kd: Result | None = None  # heads that learn from the sender's classifier

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in ``scores.json``."""
        return asdict(self)

    @staticmethod
    def from_json(record: Any) -> Score:
        """Read what :meth:`to_json` gave.

        Raises:
            ArtifactError: a field is missing or unknown.
        """
        known = {field.name for field in fields(Score)}
        try:
            unknown = sorted(set(record) - known)
            if unknown:
                raise ArtifactError(
                    f"score record has the unknown field {unknown[0]!r}; "
                    "read it with the version that wrote it, or evaluate again"
                )
            return Score(**record)
        except TypeError as error:
            raise ArtifactError(f"score record is damaged ({error}); evaluate again") from None


def read_scores(folder: str | Path) -> list[Score]:
    """Return the scores in a run folder, newest last; none if it was never evaluated.

    Raises:
        ArtifactError: the file is damaged.
    """
    return [Score.from_json(record) for record in _records(Path(folder) / "scores.json")]


def write_scores(folder: str | Path, records: Iterable[Score]) -> Path:
    """Merge records into ``folder/scores.json``, newest last, in one step; return its path.

    A record replaces an older one of the same artifact, network, protocol, runs, seed, training
    and test set; what it did not measure (8-bit view, references) it takes over from that one.

    Raises:
        ArtifactError: the file that is there is damaged. StorageError: writing failed.
    """
    path = Path(folder) / "scores.json"
    new = [score.to_json() for score in records]
    fresh = {_identity(record): record for record in new}
    old = []
    for record in _records(path):
        newer = fresh.get(_identity(record))
        if newer is None:
            old.append(record)
            continue
        for name in ("quantized", "random", "full", "inherited", "kd"):
            if newer[name] is None:
                newer[name] = record.get(name)
    write_json(path, {"scores": [*old, *new]})
    return path


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("artifact", "network", "runs", "seed")
    data = (record.get(key, "") for key in ("train_checksum", "test_checksum"))
    looked = ((record.get("backbone") or {}).get("key"), record.get("protocol", {}).get("hash"))
    return (*(record.get(key) for key in keys), *data, *looked)


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["scores"]
        if isinstance(records, list) and all(isinstance(record, dict) for record in records):
            return records
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise ArtifactError(f"{path} is damaged; delete it and evaluate again")
