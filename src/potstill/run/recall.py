"""What a cache holds is believed only with its check, and made again where it fails.

Whatever costs time is kept: networks, tables, statistics, decoded images. A file of a cache may be
damaged, of another version or of something else; none of that ends a run. It costs one warning that
names the file, and the time to make it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from potstill.run.checkpoint import UncheckedError, load_state
from potstill.run.errors import ArtifactError
from potstill.run.log import logger

__all__ = ["recall", "tell_damage", "tell_old"]

T = TypeVar("T")


def recall(
    path: Path,
    again: str,
    read: Callable[[dict[str, Tensor], dict[str, Any]], T],
    *,
    key: str | None = None,
) -> T | None:
    """Return what ``read`` makes of a cached state; None where it has to be made (again).

    Args:
        again: what is done about a file that cannot be believed, e.g. "training it again"; said in
            one warning that names the file, or the folder if it is one of version 0.1.
        read: tensors and facts to a value; may raise ArtifactError, or what a file of another form
            leads to (KeyError, TypeError, ValueError, RuntimeError).
        key: what the facts must have under "key".
    """
    try:
        if not path.exists():
            return None
        tensors, facts = load_state(path)
        if key is not None and facts["key"] != key:
            raise ArtifactError(f"{path} is of something else")
        return read(tensors, facts)
    except UncheckedError:
        tell_old(path.parent, again)
    except ArtifactError as error:
        tell_damage(error, again)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        tell_damage(f"{path} does not fit ({reason})", again)
    return None


def tell_damage(what: Exception | str, again: str) -> None:
    """Say once that a file is damaged and what is done instead of the fix that an error names."""
    logger.warning("%s; %s", str(what).partition(";")[0], again)


@cache
def tell_old(folder: Path, again: str) -> None:
    """Say once per folder that its files are of a version without checks."""
    logger.warning(
        "%s holds files of potstill 0.1, which have no check of their content; %s", folder, again
    )
