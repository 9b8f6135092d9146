"""Results that are measured once for the same facts and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from potstill.run import ArtifactError, Run, StorageError, logger
from potstill.run.checkpoint import digest, write_json
from potstill.run.records import read_json

__all__ = ["remembered"]


def remembered(
    run: Run, facts: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured for the same ``facts`` before, or measure it and keep it."""
    assert run.cache is not None
    path = run.cache / "scores" / f"{digest(facts)}.json"
    if path.exists():
        try:
            known = read_json(path, "measuring again")
            plain, kept = _plain(facts), known.get("result")
            if isinstance(kept, dict) and known.get("check") == digest([plain, kept]):
                return kept
            reason = "is damaged" if "check" in known else "has no check of its content"
            logger.warning("%s %s; measuring again", path, reason)
        except ArtifactError as error:
            logger.warning("%s", error)
    result = compute()
    try:
        check = digest([_plain(facts), _plain(result)])
        write_json(path, {"facts": facts, "result": result, "check": check})
    except StorageError as error:  # a measured score is worth more than its cache
        logger.warning("%s", error)
    return result


def _plain(facts: Mapping[str, Any]) -> Any:
    """Facts as they come back from a file."""
    return json.loads(json.dumps(facts))
