"""The command ``potstill push``: the folder of a synthetic set becomes a data set on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from potstill.app.flags import parse
from potstill.run import InputError, StorageError
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import find

__all__ = ["command", "push"]

_NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload the artifact of a run, with its card; return the address of the data set.

    Args:
        folder: run folder or artifact. name: OWNER/NAME on the Hugging Face hub; made if it is not
            there. private: whether a new one is.

    Raises:
        InputError: no such name, offline, or no login. ArtifactError: the set is damaged.
        StorageError: the hub cannot be reached or refuses.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"name is {name!r}; use OWNER/NAME, such as someone/csdm-cifar10-lt200")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "", "false", "no", "off"):
        raise InputError("HF_HUB_OFFLINE is set, and push needs the hub; unset it")
    SyntheticSet.load(folder)  # nothing damaged is uploaded
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = huggingface_hub.HfApi()
    kind: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}
    try:
        api.create_repo(**kind, private=private, exist_ok=True)
        api.upload_folder(
            **kind, folder_path=str(find(folder)), commit_message="A set distilled by potstill"
        )
    except LocalTokenNotFoundError as error:
        raise InputError("there is no login at the hub; run hf auth login first") from error
    except Exception as error:  # requests, httpx, the hub's own: none of them is ours
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise StorageError(
            f"the hub did not take {name}: {reason[0]}; check the connection, the name and "
            "hf auth whoami"
        ) from error
    return f"https://huggingface.co/datasets/{name}"


@dataclass(kw_only=True)
class _Push:
    """Upload the set of a finished run, with its card, to the Hugging Face hub."""

    folder: tyro.conf.Positional[Path]  # run folder
    name: tyro.conf.Positional[str]  # OWNER/NAME of the data set on the hub
    private: bool = False  # whether a new data set is private


def command(words: list[str]) -> str:
    """Run the command; return what it prints."""
    with parse(_Push, words, "push") as chosen:
        return push(chosen.folder, chosen.name, private=chosen.private)
