"""What an adapter says of itself: PEFT's ``adapter_config.json``, and its identity, the digest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .activation import FIELD as INVOCATION_FIELD
from .activation import parse_invocation
from .errors import AdapterError
from .files import config_file, weights_file
from .refusals import refuse_unserved

MAX_RANK = 512
_CHUNK_BYTES = 1 << 20

Pattern = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of a LoRA configuration that decide its output, as PEFT reads them.

    Patterns keep their order: the first key that matches a module wins. ``target_modules``,
    ``exclude_modules``: names (also ends of names), or one regular expression as a string.
    ``invocation_tokens`` make it an activated LoRA (see ``lora.activation``); None for a plain one.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Pattern
    alpha_pattern: Pattern
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    invocation_tokens: tuple[int, ...] | None = None

    @classmethod
    def from_directory(cls, path: str | Path) -> AdapterConfig:
        """Read ``adapter_config.json``; raises AdapterError, naming what is not served."""
        file = config_file(path)
        try:
            fields = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise AdapterError(file.name, f"is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise AdapterError(file.name, "must hold one JSON object")
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> AdapterConfig:
        """Check the fields of a parsed ``adapter_config.json``."""
        refuse_unserved(fields)
        layers = fields.get("layers_to_transform")
        patterns = fields.get("layers_pattern") or []
        return cls(
            rank=_rank("r", fields.get("r", 8)),
            alpha=_number("lora_alpha", fields.get("lora_alpha", 8)),
            use_rslora=_flag("use_rslora", fields.get("use_rslora", False)),
            rank_pattern=_pattern("rank_pattern", fields, _rank),
            alpha_pattern=_pattern("alpha_pattern", fields, _number),
            target_modules=_modules("target_modules", fields.get("target_modules")),
            exclude_modules=_modules("exclude_modules", fields.get("exclude_modules")),
            layers_to_transform=_layers([layers] if isinstance(layers, int) else layers or []),
            layers_pattern=_layer_names([patterns] if isinstance(patterns, str) else patterns),
            invocation_tokens=parse_invocation(fields.get(INVOCATION_FIELD)),
        )

    @property
    def max_rank(self) -> int:
        """The highest rank any module can have."""
        return max([self.rank, *(int(rank) for _, rank in self.rank_pattern)])

    def rank_of(self, module: str) -> int:
        """Rank of a module, named by its path in the base model."""
        return int(_first_match(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732), for a module's path."""
        alpha = _first_match(self.alpha_pattern, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether PEFT would put LoRA on this linear module of the decoder's layers."""
        if _named(self.exclude_modules, module):
            return False
        if self.target_modules == "all-linear" or module in self.target_modules:
            return True
        if not _named(self.target_modules, module):
            return False
        if isinstance(self.target_modules, str) or not self.layers_to_transform:
            return True
        return self._layer_of(module) in self.layers_to_transform

    def _layer_of(self, module: str) -> int | None:
        expressions = [_layer_expression(pattern) for pattern in self.layers_pattern]
        for expression in expressions or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            match = re.match(expression, module)
            if match is not None:
                return int(match["idx"])
        return None

    def effective(self) -> dict[str, Any]:
        """What, beside the tensors, decides the output; the rest of the file may change freely.

        Digests are made of it, so it gains keys only for what plain LoRA does not have.
        """
        fields: dict[str, Any] = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
        }
        if self.invocation_tokens is not None:
            fields[INVOCATION_FIELD] = self.invocation_tokens
        return fields


def digest_adapter(path: str | Path) -> str:
    """sha256 in hex of the effective configuration and the bytes of the weights file.

    Neither the directory's name nor fields without effect on the output change it. Raises
    AdapterError as ``AdapterConfig.from_directory`` does.
    """
    config = json.dumps(
        AdapterConfig.from_directory(path).effective(), sort_keys=True, separators=(",", ":")
    ).encode()
    digest = hashlib.sha256(b"branchline adapter 1\n%d\n" % len(config) + config)
    with weights_file(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _named(modules: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(modules, str):
        return bool(modules) and re.fullmatch(modules, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in modules)


def _first_match(pattern: Pattern, module: str, default: float) -> float:
    for key, value in pattern:
        if re.match(_key_expression(key), module):
            return value
    return default


def _key_expression(key: str) -> str:
    """What PEFT makes of a key of a rank or alpha pattern."""
    return rf"(.*\.)?({key})$"


def _layer_expression(pattern: str) -> str:
    """What PEFT makes of an entry of ``layers_pattern``."""
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


def _rank(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise AdapterError(field, f"must be a whole number from 1 to {MAX_RANK}, not {value!r}")
    return value


def _number(field: str, value: object) -> float:
    # A whole number may be too large for a float; the comparison is exact for both.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e6:
        raise AdapterError(field, f"must be a number between -1e6 and 1e6, not {value!r}")
    return float(value)


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise AdapterError(field, f"must be true or false, not {value!r}")
    return value


def _pattern(field: str, fields: dict[str, Any], parse: Any) -> Pattern:
    table = fields.get(field) or {}
    if not isinstance(table, dict):
        raise AdapterError(field, "must be an object from module names to numbers")
    for key in table:
        _compile(field, key, _key_expression(key))
    return tuple((key, parse(f"{field}[{key!r}]", value)) for key, value in table.items())


def _modules(field: str, value: object) -> tuple[str, ...] | str:
    if isinstance(value, str):
        if value != "all-linear":
            _compile(field, value, value)
        return value
    return tuple(sorted(_names(field, value or [])))


def _names(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(field, "must be a list of names or a regular expression")
    return tuple(value)


def _layer_names(value: object) -> tuple[str, ...]:
    names = _names("layers_pattern", value)
    for name in names:
        _compile("layers_pattern", name, _layer_expression(name))
    return names


def _layers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(layer, int) for layer in value):
        raise AdapterError("layers_to_transform", "must be a layer's number or a list of them")
    return tuple(value)


def _compile(field: str, pattern: str, expression: str) -> None:
    """Refuse a pattern that does not compile in the whole expression it is used in."""
    try:
        re.compile(expression)
    except re.error as error:
        raise AdapterError(field, f"{pattern!r} is not a regular expression: {error}") from None
