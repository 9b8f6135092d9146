"""Score records: what one score says about itself, and the file that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

from potstill.data.testing import FEW
from potstill.evaluation.score_text import html_table, two_lines
from potstill.evaluation.shapes import misfit
from potstill.run import ArtifactError
from potstill.run.checkpoint import write_json
from potstill.run.records import read_json

__all__ = [
    "Result",
    "Score",
    "below",
    "check_scores",
    "error_of_difference",
    "fault",
    "few_test_images",
    "gain",
    "names_of",
    "of_ceiling",
    "part",
    "read_scores",
    "write_scores",
]

_FIX = "delete it and evaluate again"


def part(facts: Any, key: str) -> dict[str, Any]:
    """Return ``facts[key]`` where it is a mapping, else {}: facts may come from anybody."""
    value = facts.get(key) if isinstance(facts, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


class Spread(TypedDict, total=False):
    """One number per student, condensed."""

    mean: Required[float]
    std: float | None
    values: list[float]


class PerClass(TypedDict, total=False):
    """One number per class; None for a class without test images."""

    mean: list[float | None]
    std: list[float | None]


class Measured(TypedDict, total=False):
    """What one training set reached; whatever else stands there is for people."""

    accuracy: Required[Spread]
    balanced: Spread
    per_class: PerClass
    groups: dict[str, Spread]
    shots: dict[str, Spread]
    calibration: Spread
    last: Spread | None
    epochs: list[int] | None
    protocol: dict[str, Any]
    updates: int  # steps of the optimiser of a student
    classifier_norms: list[float]  # of each class's row, mean over students
    images: int  # real images, each counted once
    views: int  # of them in a stored image's place


class Tested(TypedDict, total=False):
    """Where the test images come from."""

    source: str
    images: int
    smallest: int  # test images of the class that has fewest
    sentence: str
    lacks: list[str]  # classes without test images, which no accuracy is about
    fold: str  # "K/N"


Result = Annotated[dict[str, Any], Measured]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One artifact under one protocol with one student network; accuracies in percent."""

    network: str  # in full, with the depth that suits the images; under a probe the backbone
    protocol: dict[str, Any]  # name, hash, description and the facts in use
    label_tier: str  # one of TIERS
    runs: int
    seed: int
    artifact: str  # checksum of the synthetic set
    accuracy: Annotated[dict[str, Any], Spread]  # over test images: mean, std (n - 1), values
    balanced: Annotated[dict[str, Any], Spread]  # over classes: mean, std, values
    per_class: Annotated[dict[str, Any], PerClass]  # mean [C], std [C]
    groups: Annotated[dict[str, Any], dict[str, Spread]]  # head, medium, tail; {} if of one size
    classes: list[str]
    train_counts: list[int]
    seconds: float  # of training and testing the students on the artifact
    receiver_bytes: int
    device: str
    threads: int
    date: str  # YYYY-MM-DD
    test: Annotated[dict[str, Any], Tested]
    updates: int | None = None  # steps of the optimiser of a student; of none under a probe
    classifier_norms: list[float] | None = None  # of each class's row, mean over students
    last: Annotated[dict[str, Any], Spread] | None = None  # after the last epoch, if not selected
    epochs: list[int] | None = None  # the epoch selected in each run, if not the last
    quantized: Result | None = None  # the 8-bit view
    start: Result | None = None  # the same set before step 0, by the same students
    random: Result | None = None  # random real images, as many
    mosaic: Result | None = None  # random real images at equal storage, beside a tiled set
    full: Result | None = None  # all real images by cross-entropy, with their own "protocol"
    ceiling: Result | None = None  # the same by the recipe that suits a long tail best
    test_checksum: str = ""  # of the test set; "" in files of older versions
    train_checksum: str = ""  # of the real set that groups and references come from
    iterates: dict[str, Any] | None = None  # step of the best iterate, number of looks, accuracies
    backbone: dict[str, Any] | None = None  # under a probe: label, key, name, whether it distilled
    inherited: Result | None = None  # the sender's classifier, see InheritedClassifier.inherited
    kd: Result | None = None  # heads that learn from the sender's classifier
    teacher: dict[str, Any] | None = None  # who labelled views that a receiver has no labels of
    shots: Annotated[dict[str, Any], dict[str, Spread]] | None = None  # many, medium, few
    calibration: Annotated[dict[str, Any], Spread] | None = None  # expected error, percent
    chosen: bool = False  # real images that a method chose; nothing in the set was learned

    def __repr__(self) -> str:
        return two_lines(vars(self))

    def _repr_html_(self) -> str:
        return html_table(vars(self))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in ``scores.json``."""
        record = asdict(self)
        return record | {"of_ceiling": of_ceiling(record)}

    @staticmethod
    def from_json(record: Any) -> Score:
        """Read what :meth:`to_json` gave.

        Raises:
            ArtifactError: a field is missing, unknown or of another type than it has to be.
        """
        known = {field.name for field in fields(Score)}
        try:
            record = {key: value for key, value in record.items() if key != "of_ceiling"}
            unknown = sorted(set(record) - known)
            if unknown:
                raise ArtifactError(
                    f"score record has the unknown field {unknown[0]!r}; "
                    "read it with the version that wrote it, or evaluate again"
                )
            score = Score(**record)
        except (AttributeError, TypeError) as error:
            raise ArtifactError(f"score record is damaged ({error}); evaluate again") from None
        wrong = fault(record)
        if wrong:
            raise ArtifactError(f"score record is damaged ({wrong}); evaluate again")
        return score


def fault(record: Any) -> str:
    """Return what is wrong with the types of a score record, "" if nothing is.

    Only fields that are there are looked at: records of older versions lack some.
    """
    return misfit(record, Score, "record")


def names_of(network: str, backbone: Mapping[str, Any] | None) -> list[str]:
    """Names by which a score with these facts may have been asked for."""
    if backbone is None:
        return [network]
    return [backbone["name"], *(["same"] if backbone["same"] else [])]


def few_test_images(record: Mapping[str, Any]) -> int | None:
    """Return how many test images the smallest class has, None where they are enough or unknown."""
    test, classes = part(record, "test"), record.get("classes")
    fewest = test.get("smallest")
    if fewest is None and classes and isinstance(test.get("images"), int):
        fewest = test["images"] // len(classes)  # older records: at most as many as the mean
    return fewest if isinstance(fewest, int) and fewest < FEW else None


def error_of_difference(*means: tuple[int, float | None]) -> float | None:
    """Return the standard error of the difference of two means over students.

    Args:
        means: number of students and their standard deviation, of each; None without a spread.
    """
    if any(std is None or students < 2 for students, std in means):
        return None
    return sum(std**2 / students for students, std in means if std is not None) ** 0.5


def gain(record: Mapping[str, Any], over: str = "start") -> tuple[float, float | None] | None:
    """Return by how many points a set is better than its ``start`` (or "random", "mosaic").

    With the standard error of the difference of both means over students, None for single ones;
    one distillation is not all there are. None where the other was not measured.
    """
    own, other = part(record, "accuracy"), part(part(record, over), "accuracy")
    under = part(part(record, over), "protocol").get("hash")
    if under not in (None, part(record, "protocol").get("hash")):
        return None  # best of several looks against the last
    if own.get("mean") is None or other.get("mean") is None:
        return None
    error = error_of_difference(*((len(s.get("values") or ()), s.get("std")) for s in (own, other)))
    return own["mean"] - other["mean"], error


def below(record: Mapping[str, Any], reference: str) -> dict[int, float]:
    """Return the classes that came out worse than ``reference`` ("random", "mosaic").

    By label: how many points worse, the mean over students against the mean over students.
    """
    own = part(record, "per_class").get("mean") or []
    other = part(part(record, reference), "per_class").get("mean") or []
    pairs = enumerate(zip(own, other, strict=True)) if len(own) == len(other) else ()
    return {label: b - a for label, (a, b) in pairs if a is not None and b is not None and a < b}


def of_ceiling(record: Mapping[str, Any], ceiling: Mapping[str, Any] | None = None) -> float | None:
    """Return the accuracy in percent of a ceiling's (by default the record's own), None without."""
    own = part(record, "accuracy").get("mean")
    most = part(part(record, "ceiling") if ceiling is None else ceiling, "accuracy").get("mean")
    return 100 * own / most if own is not None and most else None


def read_scores(folder: str | Path) -> list[Score]:
    """Return the scores in a run folder, newest last; none if it was never evaluated.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = Path(folder) / "scores.json"
    try:
        return [Score.from_json(record) for record in _records(path)]
    except ArtifactError as error:
        said = str(error)
        raise ArtifactError(said if said.startswith(str(path)) else f"{path}: {said}") from None


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
    for record in check_scores(folder):
        newer = fresh.get(_identity(record))
        if newer is None:
            old.append(record)
            continue
        names = ("quantized", "start", "random", "mosaic", "full", "ceiling", "inherited", "kd")
        for name in names:
            if newer[name] is None:
                newer[name] = record.get(name)
        newer["of_ceiling"] = of_ceiling(newer)
    write_json(path, {"scores": [*old, *new]})
    return path


def check_scores(folder: str | Path) -> list[dict[str, Any]]:
    """Return the records in ``folder/scores.json``, beside which others may be written.

    Raises:
        ArtifactError: the file is damaged; worth knowing before hours of training.
    """
    path = Path(folder) / "scores.json"
    records = _records(path)
    for number, record in enumerate(records, 1):
        if wrong := fault(record):
            raise ArtifactError(f"{path} is damaged (record {number}: {wrong}); {_FIX}")
    return records


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("artifact", "network", "runs", "seed")
    data = (record.get(key, "") for key in ("train_checksum", "test_checksum"))
    looked = (part(record, "backbone").get("key"), part(record, "protocol").get("hash"))
    return (*(record.get(key) for key in keys), *data, *looked)


def _records(path: Path) -> list[dict[str, Any]]:
    records = read_json(path, _FIX, missing={"scores": []}).get("scores")
    if isinstance(records, list) and all(isinstance(record, dict) for record in records):
        return records
    raise ArtifactError(f"{path} is damaged (scores is no list of records); {_FIX}")
