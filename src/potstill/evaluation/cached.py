"""Results that are measured once for the same facts and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.run import ArtifactError, Run, StorageError, logger
from potstill.run.checkpoint import content_check, digest, write_json
from potstill.run.recall import tell_damage, tell_old
from potstill.run.records import read_json

__all__ = ["remembered"]


def remembered(
    run: Run, facts: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured for the same ``facts`` before, or measure it and keep it."""
    assert run.cache is not None
    path = run.cache / "scores" / f"{digest(facts)}.json"
    if (known := _known(path, _plain(facts))) is not None:
        return known
    result = compute()
    about = {"facts": facts, "result": result}
    try:
        write_json(path, about | {"check": content_check({}, _plain(about))})
    except StorageError as error:  # a measured score is worth more than its cache
        logger.warning("%s", error)
    return result


def _known(path: Path, facts: Any) -> dict[str, Any] | None:
    """What a file holds for these facts; None where there is none, or none to be believed."""
    again = "measuring again"
    try:
        known = read_json(path, again, missing={})
    except ArtifactError as error:
        tell_damage(error, again)
        return None
    if not known and not path.exists():
        return None
    if set(known) == {"facts", "result"}:
        tell_old(path.parent, again)
        return None
    check = known.pop("check", None)
    if check != content_check({}, known) or known.get("facts") != facts:
        tell_damage(f"{path} is damaged (its content has changed)", again)
        return None
    return known["result"]


def _plain(facts: Mapping[str, Any]) -> Any:
    """Facts as they come back from a file."""
    return json.loads(json.dumps(facts))
