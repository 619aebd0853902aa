"""The files of an adapter directory: found, bounded and kept inside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_SHARDS = 256
MAX_WEIGHTS_BYTES = 16 << 30
_SHARD_NAME = re.compile(r"(?!\.)[\w.-]{1,200}\.safetensors", re.ASCII)


def config_file(directory: str | Path) -> Path:
    """The adapter's configuration; raises AdapterError if it is absent, too large or elsewhere."""
    return _inside(_directory(directory), CONFIG_FILE, MAX_CONFIG_BYTES)


def weights_files(directory: str | Path) -> dict[str, Path]:
    """The adapter's safetensors by name: one file, or its shards in the order of their names.

    Raises AdapterError for an index that is malformed or leads elsewhere, and with a word on it
    where there is only a pickle.
    """
    root = _directory(directory)
    if (root / WEIGHTS_FILE).exists() or not (root / INDEX_FILE).exists():
        _refuse_pickle(root)
        return {WEIGHTS_FILE: _inside(root, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)}
    names = sorted(set(weight_map(root).values()))
    if len(names) > MAX_SHARDS:
        raise AdapterError(INDEX_FILE, f"names {len(names)} shards, at most {MAX_SHARDS} are read")
    shards = {name: _inside(root, name, MAX_WEIGHTS_BYTES) for name in names}
    size = sum(shard.stat().st_size for shard in shards.values())
    if size > MAX_WEIGHTS_BYTES:
        raise AdapterError(
            INDEX_FILE, f"its shards have {size} bytes, at most {MAX_WEIGHTS_BYTES} are read"
        )
    return shards


def weight_map(directory: str | Path) -> dict[str, str]:
    """Shard file by tensor name, from the index; raises AdapterError if it is no such thing."""
    file = _inside(_directory(directory), INDEX_FILE, MAX_INDEX_BYTES)
    try:
        index = json.loads(file.read_bytes(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise AdapterError(INDEX_FILE, f"is not JSON: {error}") from None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise AdapterError(INDEX_FILE, "must hold weight_map, an object from tensors to files")
    for name in set(map(str, shards.values())):
        if not _SHARD_NAME.fullmatch(name):
            raise AdapterError(INDEX_FILE, f"{name[:100]!r} is not the plain name of a shard")
    return dict(shards)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object; raises ValueError for one that has a key twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:200]!r} is there twice")
        found[key] = value
    return found


def _refuse_pickle(root: Path) -> None:
    for name in () if (root / WEIGHTS_FILE).exists() else PICKLE_FILES:
        if (root / name).exists():
            raise AdapterError(
                name,
                "a pickle can run any code when it is read and is never opened; "
                f"save the adapter as {WEIGHTS_FILE}",
            )


def _directory(directory: str | Path) -> Path:
    root = Path(directory)
    if not root.is_dir():
        raise AdapterError("path", f"{root} is not a directory")
    return root


def _inside(root: Path, name: str, max_bytes: int) -> Path:
    path = root / name
    if not path.exists():
        raise AdapterError(name, "is missing")
    real = path.resolve()
    if not real.is_relative_to(_allowed_root(root)):
        raise AdapterError(name, "is a link that leads out of the adapter's directory")
    if not real.is_file():
        raise AdapterError(name, "is not a regular file")
    size = real.stat().st_size
    if size > max_bytes:
        raise AdapterError(name, f"has {size} bytes, at most {max_bytes} are read")
    return real


def _allowed_root(root: Path) -> Path:
    """The directory itself; in the hub's cache, where snapshots link to blobs, the repository."""
    root = root.resolve()
    in_hub_cache = root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir()
    return root.parent.parent if in_hub_cache else root
