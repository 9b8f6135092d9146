"""The data set card: README.md of an artifact, readable by people and by the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.data.longtail import Imbalance, size_groups
from potstill.data.testing import FEW

if TYPE_CHECKING:
    from potstill.synthetic.artifact import SyntheticSet

__all__ = ["PARQUET", "VIEWS_PARQUET", "card"]

PARQUET = "data/train-00000-of-00001.parquet"
VIEWS_PARQUET = "data/views-00000-of-00001.parquet"

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SHOWN = 30  # classes listed by name; the files hold all


def card(synthetic: SyntheticSet, name: str) -> str:
    """Return the card as Markdown with YAML front matter.

    Args:
        synthetic: the set; scores come from ``provenance["scores"]`` where they are there.
        name: the folder's name, for the examples.
    """
    from jinja2 import ChainableUndefined, Environment

    # Not HTML: what users named is escaped for Markdown by the filter `md` instead.
    environment = Environment(
        undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters |= {"md": _plain, "percent": _percent, "share": _share}
    template = environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8"))
    facts = synthetic.provenance
    decoded = synthetic.decoded()[1]
    return template.render(
        front=_front_matter(synthetic, len(decoded)),
        s=synthetic,
        p=facts,
        name=re.sub(r"[^\w.-]", "_", name),
        title=_title(synthetic),
        views=len(decoded) // len(synthetic),
        decoded=len(decoded),
        size=_bytes(synthetic.nbytes),
        normalise=_constants(synthetic),
        about_labels=_about_labels(synthetic),
        classes=_class_rows(synthetic),
        real=_real(synthetic),
        chosen=_chosen(synthetic),
        hidden=max(0, synthetic.num_classes - _SHOWN),
        scores=[_score(r) for r in _list(facts.get("scores")) if isinstance(r, Mapping)],
    )


def _front_matter(synthetic: SyntheticSet, rows: int) -> str:
    from huggingface_hub import DatasetCardData

    counts = _source_counts(synthetic)
    uneven = bool(size_groups(counts))
    licence = _part(synthetic.provenance, "data").get("license")
    data = DatasetCardData(
        license=licence if isinstance(licence, str) and licence else "unknown",
        pretty_name=_title(synthetic),
        task_categories=["image-classification"],
        size_categories=[next((text for most, text in _SIZES if rows < most), "n>1M")],
        tags=["dataset-distillation", *(["long-tailed"] if uneven else []), "potstill"],
        configs=_configs(synthetic),
    )
    return data.to_yaml()


def _configs(synthetic: SyntheticSet) -> list[dict[str, Any]]:
    # `datasets` keeps one cache entry per folder name and configuration, and every artifact's
    # folder is called "synthetic": the content has to be in the name
    images: dict[str, Any] = {
        "config_name": f"potstill-{synthetic.checksum}",
        "data_files": [{"split": "train", "path": PARQUET}],
    }
    if synthetic.view_labels is None:
        return [images]
    views = {
        "config_name": f"views-{synthetic.checksum}",
        "data_files": [{"split": "train", "path": VIEWS_PARQUET}],
    }
    return [images | {"default": True}, views]


def _title(synthetic: SyntheticSet) -> str:
    method = _part(synthetic.provenance, "method").get("name")
    source = _part(synthetic.provenance, "data").get("source")
    how = "chosen" if _chosen(synthetic) else "distilled"
    made = f"{source or 'an image set'} {how}" + (f" by {method}" if method else "")
    return _line(f"{made}, {synthetic.ipc} images per class")


def _chosen(synthetic: SyntheticSet) -> bool:
    """Whether the images are real ones that a method chose."""
    return _part(synthetic.provenance, "method").get("family") == "selection"


def _real(synthetic: SyntheticSet) -> dict[str, Any]:
    """How many real images the set stands for and how uneven they are; {} where unknown."""
    counts = _source_counts(synthetic)
    if not counts:
        return {}
    imbalance = Imbalance.of(counts, _part(synthetic.provenance, "data").get("history"))
    return {"images": sum(counts), "about": imbalance.sentence}


def _score(record: Mapping[str, Any]) -> dict[str, Any]:
    """A score record with its test images, and what all real images were trained for, in words."""
    test = _part(record, "test")
    source, fold, fewest = test.get("source"), test.get("fold"), test.get("smallest")
    words = [f"{source}, fold {fold}" if fold else str(source or "unknown")]
    if isinstance(fewest, int) and fewest < FEW:
        words.append(f"few: {fewest} of a class")
    epochs = _part(_part(_part(record, "full"), "protocol"), "training").get("epochs")
    shown = f" ({epochs} epochs)" if isinstance(epochs, int) else ""
    prior = _part(_part(record, "ceiling"), "protocol").get("prior")
    recipe = f" ({_plain(prior)})" if prior else ""
    return dict(record) | {"tested": "; ".join(words), "epochs": shown, "recipe": recipe}


def _constants(synthetic: SyntheticSet) -> str:
    """How to bring RGB 0-1 to network space, in words and numbers."""
    if synthetic.transform.kind != "normalize":
        return (
            f"`{synthetic.transform.kind}`: its matrices are in `synthetic.safetensors`; "
            "`SyntheticSet.load(...).transform` applies them"
        )
    mean, std = (
        ", ".join(f"{value:.4f}" for value in synthetic.transform.to_tensors()[key].tolist())
        for key in ("mean", "std")
    )
    return f"subtract the mean ({mean}) and divide by the standard deviation ({std}) per channel"


def _about_labels(s: SyntheticSet) -> str:
    """What a receiver gets as labels, after the name of the tier."""
    if s.view_labels is not None:
        kept = s.view_labels.values.shape[2]
        most = "" if kept == s.num_classes else f" (the {kept} likeliest classes)"
        return f": a soft label{most} of every view in {s.view_labels.epochs} epochs"
    if s.projection is not None:
        return f": a map that labels any view from features of {s.projection.backbone}"
    if s.regression_targets is not None:
        return ": real numbers per image and class, learned by squared error (decoded_targets())"
    if s.soft_labels is None:
        return " labels"
    each = "image" if s.soft_labels.ndim == 2 else "training image"
    return f": one stored soft label per {each}"


def _class_rows(synthetic: SyntheticSet) -> list[dict[str, Any]]:
    source = _source_counts(synthetic)
    return [
        {"label": label, "name": name, "stored": stored, "source": source[label] if source else ""}
        for label, (name, stored) in enumerate(
            zip(synthetic.classes[:_SHOWN], synthetic.counts, strict=False)
        )
    ]


def _source_counts(synthetic: SyntheticSet) -> list[int]:
    counts = _list(_part(synthetic.provenance, "data").get("counts"))
    fits = len(counts) == synthetic.num_classes and all(isinstance(n, int) for n in counts)
    return counts if fits else []


def _part(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _line(text: Any) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is: names come from anybody."""
    return re.sub(r"([\\`*_{}\[\]<>|#!$&~])", r"\\\1", _line(text))


def _percent(score: Any) -> str:
    """``{"mean", "std"}`` as "61.2 ± 0.4", "61.2" for a single student, or a dash."""
    try:
        if score["std"] is None:
            return f"{score['mean']:.1f}"
        return f"{score['mean']:.1f} ± {score['std']:.1f}"
    except (KeyError, TypeError, ValueError):
        return "–"


def _share(percent: Any) -> str:
    """A number with one decimal, or a dash."""
    return f"{percent:.1f}" if isinstance(percent, int | float) else "–"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
