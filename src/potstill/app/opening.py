"""Opening real data for a job: as flags, a recipe or ``run.json`` describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.data import ImageSet, load_pair
from potstill.data.longtail import Factor, Profile, check_factor
from potstill.data.reading import Reading
from potstill.data.testing import few_note, lacking_note
from potstill.run import InputError, Run, logger
from potstill.run.fields import Seed
from potstill.run.records import fits, type_fault

__all__ = ["Data", "fold_of", "open_data"]

_ALWAYS = frozenset(
    ["data", "test", "image_size", "resize", "channels", "labels", "imbalance_factor"]
)  # facts of every run.json; any other option stands there where it is used


@dataclass(frozen=True, kw_only=True)
class Data(Reading):
    """Which real images; the same fields are command-line flags and a recipe's [data] table."""

    data: str = "digits"  # digits, a folder, a Parquet/Arrow data set, an .npz file or a hub name
    test: str | None = None  # source of the test split; by default the same source's
    imbalance_factor: Factor = 1.0  # n_max / n_min to cut the train split to; 1 = as it is
    profile: Profile = "exponential"  # shape of that cut; of no meaning without one
    # K/N tests on the K-th of N parts of the train split, for cross-validation
    fold: str | None = None
    fold_seed: Seed = 0  # draws which image is in which fold

    def __post_init__(self) -> None:
        check_factor(self.imbalance_factor)
        super().__post_init__()

    def open(self, run: Run, source: Any = None) -> tuple[ImageSet, ImageSet, str]:
        """Return (train, test, sentence about the test); ``source`` stands in for ``data``."""
        train, test, note = load_pair(
            self.data if source is None else source,
            test=self.test,
            fold=self.fold,
            seed=0 if self.fold is None else self.fold_seed,
            memory_gb=run.memory_gb,
            cache=run.cache,
            quiet=run.quiet,
            **self.reading_facts(),
        )
        if self.fold is None:  # all folds together test every image
            for said in filter(None, (lacking_note(test), few_note(test))):
                logger.warning("%s", said)
        if self.imbalance_factor != 1:
            train = train.long_tailed(self.imbalance_factor, profile=self.profile)
        return train, test, note

    def facts(self) -> dict[str, Any]:
        """Fields for ``run.json``: what older runs did not know, and what says nothing (the
        profile of no cut), is left out.
        """
        used = {*_ALWAYS, *self.reading_facts()}
        used |= {"profile"} if self.imbalance_factor != 1 else set()
        used |= {"fold", "fold_seed"} if self.fold is not None else set()
        return {key: value for key, value in asdict(self).items() if key in used}


def fold_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the fold that a set was cut from before anything else; {} if from none."""
    fact = history[0] if history else {}
    if fact.get("op") != "fold" or fact.get("part") != "rest":
        return {}
    return {"fold": f"{fact['fold']}/{fact['folds']}", "fold_seed": fact["seed"]}


def open_data(
    record: dict[str, Any], run: Run, data: str | None = None, test: str | None = None
) -> tuple[ImageSet, ImageSet, str]:
    """Open the data of a finished run again, from its ``run.json``; refuse changed data.

    ``data`` names another place for them, ``test`` other test images; what was asked for besides
    (size, imbalance) still holds.
    An :class:`ImageSet` is loaded again from its source where that gives the same images.
    """
    asked = dict(record["job"]["data"])
    in_memory, made_from = asked.pop("in_memory", False), record["job"].get("train_checksum")
    if (fault := type_fault(asked, Data)) is not None:
        raise InputError(
            f"run.json has data options of another kind ({fault}); distil again with --force"
        )
    asked |= {} if data is None else {"data": data}
    described = Data(**asked | ({} if test is None else {"test": test}))
    history = record["job"].get("history")  # of an ImageSet; arrays have none
    history = history if isinstance(history, list) else None
    try:
        if in_memory and history is None and data is None:
            raise InputError("arrays have no source")
        train, held, note = described.open(run)
        if in_memory and history:
            train = _replayed(train, history)
        if train.checksum == made_from:
            return train, held, note
        if data is not None:
            raise InputError(
                f"data {data!r} are not what the run was made from (checksum {train.checksum}, "
                f"the run's {made_from}); give the same data from another place"
            )
        raise InputError(
            f"data {described.data!r} has changed since the run was made (checksum "
            f"{train.checksum}, then {made_from}); distil again with --force"
        )
    except InputError as error:
        if in_memory and data is None:
            raise InputError(
                "the run was made from arrays in memory; call potstill.evaluate with the same "
                "arrays"
            ) from error
        raise


def _replayed(train: ImageSet, history: list[dict[str, Any]]) -> ImageSet:
    """Repeat the long-tailed cuts that ``history`` has and ``train`` has not.

    Any other selection is left out; the checksum then tells the two sets apart.
    """
    for fact in history[len(train.history) :]:
        factor = fact.get("imbalance_factor") if isinstance(fact, dict) else None
        if factor is not None and fact.get("op") == "long_tailed":
            if not fits(factor, float) or not fits(fact.get("seed", 0), int):
                raise InputError("run.json tells of a cut that is none; distil again with --force")
            how = {key: fact[key] for key in ("profile", "draw", "seed") if key in fact}
            train = train.long_tailed(factor, **how)
    return train
