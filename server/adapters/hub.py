"""Where a model or an adapter lies: a directory, or a hub id through the hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...lora.errors import BranchlineError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


class NotFoundError(BranchlineError):
    """Neither a directory nor a hub id that can be had."""


def find_directory(path_or_id: str) -> str:
    """A local directory for ``path_or_id``, downloaded if it is a hub id; raises NotFoundError."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise NotFoundError(f"{path_or_id} is a file; a directory is needed")
    if path.is_absolute() or not _HUB_ID.fullmatch(path_or_id) or path_or_id.startswith("."):
        raise NotFoundError(f"there is no directory {path_or_id}")
    return _download(path_or_id)


def is_offline() -> bool:
    """Whether the environment keeps the hub's library off the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find_cached(hub_id: str, revision: str | None, patterns: Sequence[str]) -> str:
    """A snapshot in the hub's cache, without the network; raises NotFoundError."""
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        version = f" at {revision}" if revision else ""
        raise NotFoundError(
            f"{hub_id}{version} is not in the hub's cache, and the hub can't be reached"
        ) from error


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, allow_patterns=_FILES))
    except LocalEntryNotFoundError as error:
        raise NotFoundError(
            f"{hub_id} is no directory here, is not in the hub's cache, and the hub can't be "
            "reached"
        ) from error
    except HfHubHTTPError as error:
        raise NotFoundError(f"{hub_id}: the hub says: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise NotFoundError(f"{hub_id}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
