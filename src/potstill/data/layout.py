"""Which files of a folder make which split of a table: Hugging Face's conventions, made strict.

A ``README.md`` may say it (``configs`` with ``data_files``). Otherwise the names do, as in
``train-00000-of-00002.parquet``, ``data/test-*.parquet``, ``train/0.parquet``, ``train.parquet``
or ``cifar10_train.parquet``; where no name does, all files are the train split. Files of one split
must be shards of one another, so that two test sets are never pooled. Only names are seen here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

from potstill.data.decode import brief
from potstill.data.splits import split_role
from potstill.run import InputError, logger

__all__ = ["class_names", "front_matter", "split_files"]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_TABLES = (".parquet", ".arrow")
Names = Callable[[], list[str]]
_HEAD = 1 << 19  # characters of YAML; its parser takes seconds for more
_KEY = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"((?<!\d)(?<!-of-)\d+)")  # of a shard; how many there are is text
_OWN = re.compile(rf"data/(\w+){_SHARD.pattern}")  # a split of any name, as push_to_hub writes it
_HASH = re.compile(r"-[0-9a-f]{16}$")  # what push_to_hub once put behind the number


def split_files(files: Sequence[str], card: Mapping[str, Any], source: str) -> dict[str, Names]:
    """How to get the names of each split's files, in order, from all names of a folder.

    Names have "/" between their parts. A split that is not asked for need not be in order.

    Args:
        card: the front matter of the folder's README.md, or nothing. source: for messages.

    Raises:
        InputError: several configurations, a pattern that leaves the folder or finds nothing; from
            what is returned, where files of one split are not shards of one another; names them.
    """
    chosen = _configuration(card, source)
    folder = _inside(chosen.get("data_dir") or "", source)
    patterns = _patterns(chosen.get("data_files"), source)
    if patterns:
        return {
            split: partial(_listed, some, folder, files, source) for split, some in patterns.items()
        }
    splits: dict[str, list[str]] = {}
    rest = []
    for name in files:
        if not (name.lower().endswith(_TABLES) and _fits(name.split("/"), [*folder, "**"])):
            continue
        split = _split_of(name, source)
        splits.setdefault(split, []).append(name) if split else rest.append(name)
    if splits and rest:
        logger.warning(
            "%s: names of %s files say no split; they are left out (the first is %s)",
            source,
            len(rest),
            rest[0],
        )
    splits = splits or {"train": rest}
    if not any(splits.values()):
        raise InputError(f"source {source} has no files in {'/'.join(folder)}; correct README.md")
    return {split: partial(_in_order, split, some, source) for split, some in splits.items()}


def front_matter(text: str, source: str) -> Mapping[str, Any]:
    """The YAML at the head of a README.md as a mapping; empty if there is none.

    Every scalar stays text: a class called ``no`` is no falsehood, and nothing is merged.
    """
    start, _, rest = text.lstrip("\ufeff").partition("---")
    head, end, _ = rest.partition("\n---")
    if start.strip() or not end:
        return {}
    import yaml  # of huggingface_hub

    try:
        if len(head) > _HEAD:
            raise ValueError(f"{len(head)} characters, more than {_HEAD}")
        found = yaml.load(head, yaml.BaseLoader)
        if not isinstance(found, Mapping | str | None):
            raise ValueError("no mapping")
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"README.md of source {source} has a head that cannot be read ({brief(error)}); "
            "correct it or remove the file"
        ) from error
    return found if isinstance(found, Mapping) else {}


def class_names(card: Mapping[str, Any], source: str) -> dict[str, tuple[str, ...]]:
    """Class names by column that the front matter tells under ``dataset_info``."""
    facts = card.get("dataset_info")
    if isinstance(facts, list):
        chosen = _configuration(card, source).get("config_name")
        facts = next((f for f in facts if _part(f).get("config_name") in (chosen, None)), None)
    found = {}
    for feature in _list(_part(facts).get("features")):
        names = _part(_part(_part(feature).get("dtype")).get("class_label")).get("names")
        if isinstance(names, Mapping) and all(_KEY.fullmatch(_word(key)) for key in names):
            names = [names[key] for key in sorted(names, key=int)]
        if isinstance(names, list) and all(isinstance(name, str | int) for name in names):
            found[_word(_part(feature).get("name"))] = tuple(map(str, names))
    return found


def _configuration(card: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The only configuration of a card, or the one that it marks as the default."""
    known = [config for config in _list(card.get("configs")) if isinstance(config, Mapping)]
    marked = [config for config in known if _word(config.get("default")).lower() == "true"]
    if len(known) > 1 and len(marked) != 1:
        names = ", ".join(_word(config.get("config_name")) for config in known[:8])
        raise InputError(
            f"source {source} has several configurations ({names}); give the folder of one, or "
            "write 'default: true' below one of them in README.md"
        )
    return (marked or known or [{}])[0]


def _patterns(listed: Any, source: str) -> dict[str, list[str]]:
    """Patterns per split from ``data_files``: a text, a list of texts, or one entry per split."""
    entries = [listed] if isinstance(listed, str) else _list(listed)
    if isinstance(listed, Mapping):
        entries = [{"split": split, "path": some} for split, some in listed.items()]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, some = "train", entry
        if isinstance(entry, Mapping):
            split, some = _word(entry.get("split")), entry.get("path")
        some = [some] if isinstance(some, str) else some
        if not isinstance(some, list) or not all(isinstance(each, str) for each in some):
            raise InputError(
                f"README.md of source {source} has data_files that are no names of files "
                f"({_word(entry)}); give 'split' and 'path'"
            )
        splits.setdefault(split, []).extend(some)
    return splits


def _inside(path: Any, source: str) -> tuple[str, ...]:
    """Parts of a path or pattern below the folder."""
    text = _word(path, 4096)
    parts = PurePosixPath(text).parts
    if "://" in text or text.startswith(("/", "~")) or "\\" in text or ".." in parts:
        raise InputError(
            f"README.md of source {source} names {text[:200]!r}, which may lie outside of it; only "
            "files of the folder are read"
        )
    return parts


def _listed(
    patterns: Sequence[str], folder: Sequence[str], files: Sequence[str], source: str
) -> list[str]:
    """Files that the patterns of one split name, each once, as names below the folder."""
    listed: dict[str, None] = {}
    for pattern in patterns:
        title = f"README.md of source {source} names {pattern[:200]!r}"
        inside = [*folder, *_inside(pattern, source)]
        found = [name for name in files if _fits(name.split("/"), inside)]
        if not found:
            raise InputError(f"{title}, and there is no such file; fetch it or correct README.md")
        for name in found:
            if not name.lower().endswith(_TABLES):
                raise InputError(f"{title}, and {name} is neither Parquet nor Arrow; convert it")
        listed |= dict.fromkeys(found)
    return list(listed)


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern; ``**`` stands for any number of parts."""

    @cache  # two stars after another would be tried in every combination
    def fits(at: int, part: int) -> bool:
        if part == len(pattern):
            return at == len(path)
        if pattern[part] == "**":
            return fits(at, part + 1) or (at < len(path) and fits(at + 1, part))
        return at < len(path) and fnmatchcase(path[at], pattern[part]) and fits(at + 1, part + 1)

    return fits(0, 0)


def _split_of(name: str, source: str) -> str | None:
    """What a file's folders and name say about its split."""
    if match := _OWN.match(name):
        return match[1]
    path = PurePosixPath(name)
    roles = [split_role(part) for part in (*path.parts[:-1], path.stem)]
    said = sorted({role[0] for role in roles if role})
    if len(said) > 1:
        raise InputError(f"{name} of source {source} could be {' or '.join(said)}; rename it")
    return said[0] if said else None


def _in_order(split: str, names: list[str], source: str) -> list[str]:
    """Shards of one split by number: names that differ in one number, which counts up."""
    stems = {name: _HASH.sub("", name.rpartition(".")[0]) for name in names}
    parts = {name: _NUMBER.split(stem) for name, stem in stems.items()}
    alike = len({(len(parts[name]), name.rpartition(".")[2].lower()) for name in names}) == 1
    differ = [at for at, some in enumerate(zip(*parts.values(), strict=False)) if len({*some}) > 1]
    if len(names) > 1:
        counts = alike and len(differ) == 1 and differ[0] % 2 == 1
        names = sorted(names, key=lambda name: int(parts[name][differ[0]])) if counts else names
        first = int(parts[names[0]][differ[0]]) if counts else 0
        if not counts or int(parts[names[-1]][differ[0]]) != first + len(names) - 1:
            raise InputError(
                f"source {source} has files of the {split!r} split that are no shards of one "
                f"another ({_few(names)}); give one of them by its path, or list them in README.md"
            )
    match = _SHARD.search(stems[names[0]])
    if match and int(match[2]) != len(names):
        raise InputError(
            f"source {source} has {len(names)} of the {int(match[2])} files of its {split!r} split "
            f"({_few(names)}); fetch the others"
        )
    return names


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _word(value: Any, most: int = 80) -> str:
    """A name from YAML; of lists and the like, which can stand for gigabytes, only the type."""
    return str(value)[:most] if isinstance(value, str | int) else type(value).__name__


def _part(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
