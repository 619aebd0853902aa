"""The files of an adapter directory: found, bounded and kept inside it."""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 16 << 30


def config_file(directory: str | Path) -> Path:
    """The adapter's configuration; raises AdapterError if it is absent, too large or elsewhere."""
    return _inside(_directory(directory), CONFIG_FILE, MAX_CONFIG_BYTES)


def weights_file(directory: str | Path) -> Path:
    """The adapter's safetensors; raises AdapterError, with a word on it if there is a pickle."""
    root = _directory(directory)
    if not (root / WEIGHTS_FILE).exists():
        for name in PICKLE_FILES:
            if (root / name).exists():
                raise AdapterError(
                    name,
                    "a pickle can run any code when it is read and is never opened; "
                    f"save the adapter as {WEIGHTS_FILE}",
                )
    return _inside(root, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)


def _directory(directory: str | Path) -> Path:
    root = Path(directory)
    if not root.is_dir():
        raise AdapterError("path", f"{root} is not a directory")
    return root


def _inside(root: Path, name: str, max_bytes: int) -> Path:
    path = root / name
    if not path.exists():
        raise AdapterError(name, f"is missing in {root}")
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
