"""Typed reading of config.json: every wrong value is refused under its field's name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError


class UnsupportedModelError(EngineError):
    """A model that can't be served; one line that says which fact of it and what is allowed."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stands; ``null`` counts as absent unless said otherwise."""

    values: Mapping[str, object]
    where: str

    @classmethod
    def from_file(cls, path: Path) -> Fields:
        """Read a JSON object; raises UnsupportedModelError when there is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnsupportedModelError(f"{path}: can't be read: {error}") from None
        if not isinstance(values, dict):
            raise UnsupportedModelError(f"{path}: must hold a JSON object")
        return cls(values, str(path))

    def error(self, name: str, allowed: str) -> UnsupportedModelError:
        """The error for field ``name``: what it is and what it may be."""
        given = json.dumps(self.values[name]) if name in self.values else "absent"
        shown = given if len(given) <= 80 else f"{given[:77]}..."
        return UnsupportedModelError(f"{self.where}: {name} is {shown}; must be {allowed}")

    def has(self, name: str) -> bool:
        """Whether the field is there at all, ``null`` included."""
        return name in self.values

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "a positive integer")
        return value

    def optional_integer(self, name: str, absent: int | None = None) -> int | None:
        """A positive integer, None for ``null``, ``absent`` when the field is not there."""
        if name not in self.values:
            return absent
        return None if self.values[name] is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "a number over 0")
        if not (math.isfinite(value) and value > 0):
            raise self.error(name, "a number over 0")
        return float(value)

    def optional_number(self, name: str, absent: float | None = None) -> float | None:
        """A finite number over 0, None for ``null``, ``absent`` when the field is not there."""
        if name not in self.values:
            return absent
        return None if self.values[name] is None else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """One of the ``allowed`` words."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, f"one of {', '.join(allowed)}")
        return value

    def list_of(self, name: str, length: int) -> list[object] | None:
        """A list of at least ``length`` entries, cut to it; None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise self.error(name, f"a list of {length} entries, one a layer")
        return value[:length]

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """Exactly ``length`` numbers over 0."""
        value = self.values.get(name)
        allowed = f"a list of {length} numbers over 0"
        if not isinstance(value, list) or len(value) != length:
            raise self.error(name, allowed)
        if not all(isinstance(entry, int | float) and entry > 0 for entry in value):
            raise self.error(name, allowed)
        return tuple(float(entry) for entry in value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent."""
        value = self.values.get(name)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(entry) is int and entry >= 0 for entry in entries):
            raise self.error(name, "a token id or a list of them")
        return tuple(entries)

    def section(self, name: str) -> Fields | None:
        """A JSON object inside this one; None when absent or ``null``."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(value, f"{self.where}: {name}")
