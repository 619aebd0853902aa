"""The adapters a server offers: a client's model names, each for one adapter version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .adapter import AdapterConfig, digest_adapter
from .errors import AdapterError

MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:@-]|/(?=[A-Za-z0-9]))*")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One name and the adapter version behind it; ``target_modules`` are names or one regex."""

    name: str
    digest: str
    path: str
    rank: int
    target_modules: tuple[str, ...]


class AdapterCatalog:
    """Names of adapters. Two names may share a version, but one name never has two."""

    def __init__(self, base_model_name: str) -> None:
        self._base_model_name = base_model_name
        self._entries: dict[str, CatalogEntry] = {}

    def register(self, name: str, path: str | Path) -> CatalogEntry:
        """Read, digest and enter an adapter directory.

        Raises AdapterError with field ``name`` for a bad or taken name, else with the file or
        configuration field at fault.
        """
        check_name(name)
        if name == self._base_model_name:
            raise AdapterError("name", f"{name!r} is the base model's name")
        if name in self._entries:
            raise AdapterError("name", f"{name!r} is already registered")
        config = AdapterConfig.from_directory(path)
        targets = config.target_modules
        entry = CatalogEntry(
            name=name,
            digest=digest_adapter(path),
            path=str(Path(path).absolute()),
            rank=config.max_rank,
            target_modules=(targets,) if isinstance(targets, str) else targets,
        )
        self._entries[name] = entry
        return entry

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> CatalogEntry | None:
        """The entry of a name, None if there is none."""
        return self._entries.get(name)

    def names(self) -> list[str]:
        """All names, in the order they were registered."""
        return list(self._entries)

    def entries(self) -> list[CatalogEntry]:
        """All entries, in the order they were registered."""
        return list(self._entries.values())


def check_name(name: str) -> None:
    """Raise AdapterError unless the name can stand in URLs, metrics and file listings."""
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        shown = name if len(name) <= MAX_NAME_LENGTH else name[:32] + "..."
        raise AdapterError(
            "name",
            f"{shown!r} is not a name: 1 to {MAX_NAME_LENGTH} of letters, digits and . _ : @ - , "
            "starting with a letter or digit, in parts divided by single slashes",
        )
