"""Results that are measured once for the same facts and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from potstill.run import Run, StorageError, logger
from potstill.run.cache import Cached

__all__ = ["remembered"]

_FILE = "result.safetensors"


def remembered(
    run: Run, facts: Mapping[str, Any], what: str, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured for the same ``facts`` before, or measure it and keep it.

    ``what`` it is, in words for people.
    """
    entry, began = Cached(run.cache, "scores", facts, what), time.monotonic()
    known = entry.recall(_FILE, "measuring again", lambda _, stored: dict(stored["result"]))
    if known is not None:
        return known
    result = compute()
    try:
        entry.save(_FILE, {}, {"facts": facts, "result": result}, time.monotonic() - began)
    except StorageError as error:  # a measured score is worth more than its cache
        logger.warning("%s", error)
    return result
