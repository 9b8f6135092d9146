"""Results that are measured once for the same facts and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from potstill.run import Run, StorageError, logger
from potstill.run.checkpoint import digest, write_json

__all__ = ["remembered"]


def remembered(
    run: Run, facts: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured for the same ``facts`` before, or measure it and keep it."""
    assert run.cache is not None
    path = run.cache / "scores" / f"{digest(facts)}.json"
    if path.is_file():
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged; measuring again", path)
    result = compute()
    try:
        write_json(path, {"facts": facts, "result": result})
    except StorageError as error:  # a measured score is worth more than its cache
        logger.warning("%s", error)
    return result
