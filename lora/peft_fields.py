"""The fields of PEFT's LoRA configuration, each checked as it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import AdapterError
from .patterns import PatternChecker, key_expression, layer_expression, saved_expression

MAX_RANK = 512
MAX_NAMES = 16_384
MAX_SAVED_NAMES = 256
MAX_TOKEN_ROWS = 65_536
BIASES = ("none", "all", "lora_only")

Pattern = tuple[tuple[str, float], ...]
TokenRows = tuple[tuple[str, tuple[int, ...]], ...]
"""Token ids by the module whose rows they are."""

_EMBEDDING = "embed_tokens"


class FieldReader:
    """Reads one configuration; every method raises AdapterError that names its field."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._patterns = PatternChecker()

    def rank(self, field: str) -> int:
        """A rank."""
        return _rank(field, self._fields.get(field, 8))

    def number(self, field: str) -> float:
        """A factor such as alpha."""
        return _number(field, self._fields.get(field, 8))

    def flag(self, field: str) -> bool:
        """A boolean; null and absent are false."""
        value = self._fields.get(field)
        if value is not None and not isinstance(value, bool):
            raise AdapterError(field, f"must be true or false, not {value!r}")
        return bool(value)

    def bias(self) -> str:
        """Which of the base's biases are trained."""
        value = self._fields.get("bias") or "none"
        if value not in BIASES:
            raise AdapterError("bias", f"must be one of {', '.join(BIASES)}, not {value!r}")
        return str(value)

    def rank_pattern(self) -> Pattern:
        """Ranks by pattern of the module."""
        return self._pattern("rank_pattern", _rank)

    def alpha_pattern(self) -> Pattern:
        """Alphas by pattern of the module."""
        return self._pattern("alpha_pattern", _number)

    def modules(self, field: str) -> tuple[str, ...] | str:
        """Names of modules, or one regular expression."""
        value = self._fields.get(field)
        if isinstance(value, str):
            self._patterns.check(field, value, value)
            return value
        return tuple(sorted(_names(field, value or [], MAX_NAMES)))

    def modules_to_save(self) -> tuple[str, ...]:
        """Ends of the names of wholly trained modules."""
        field = "modules_to_save"
        names = _names(field, self._fields.get(field) or [], MAX_SAVED_NAMES)
        for name in names:
            if not name:
                raise AdapterError(field, "an empty name means every module")
            self._patterns.check(field, name, saved_expression(name))
        return tuple(sorted(set(names)))

    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that are adapted; none: all."""
        field = "layers_to_transform"
        value = self._fields.get(field)
        layers = [value] if isinstance(value, int) else value or []
        if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
            raise AdapterError(field, "must be a layer's number or a list of them")
        return tuple(layers)

    def layers_pattern(self) -> tuple[str, ...]:
        """Names before the layer's number."""
        field = "layers_pattern"
        value = self._fields.get(field) or []
        names = _names(field, [value] if isinstance(value, str) else value, MAX_SAVED_NAMES)
        for name in names:
            # Never plain, because its group must be there alone.
            self._patterns.check(field, f"({name})", layer_expression(name))
        return names

    def token_rows(self) -> TokenRows:
        """Trained rows of embedding or output layer; a list alone is of the embedding."""
        field = "trainable_token_indices"
        value = self._fields.get(field) or {}
        by_module = {_EMBEDDING: value} if isinstance(value, list) else value
        if not isinstance(by_module, dict) or len(by_module) > 2:
            raise AdapterError(field, "must be token ids, or them by embed_tokens and lm_head")
        return tuple((name, _token_ids(field, by_module[name])) for name in sorted(by_module))

    def _pattern(self, field: str, parse: Callable[[str, object], float]) -> Pattern:
        table = self._fields.get(field) or {}
        if not isinstance(table, dict) or len(table) > MAX_NAMES:
            raise AdapterError(field, "must be an object from module names to numbers")
        for key in table:
            self._patterns.check(field, key, key_expression(key))
        return tuple((key, parse(f"{field}[{key!r}]", value)) for key, value in table.items())


def _rank(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise AdapterError(field, f"must be a whole number from 1 to {MAX_RANK}, not {value!r}")
    return value


def _number(field: str, value: object) -> float:
    # A whole number may be too large for a float; the comparison is exact for both.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e6:
        raise AdapterError(field, f"must be a number between -1e6 and 1e6, not {value!r}")
    return float(value)


def _names(field: str, value: object, max_names: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(field, "must be a list of names or a regular expression")
    if len(value) > max_names:
        raise AdapterError(field, f"has {len(value)} names, at most {max_names}")
    return tuple(value)


def _token_ids(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise AdapterError(field, "must hold token ids, whole numbers of 0 or more")
    if len(value) > MAX_TOKEN_ROWS:
        raise AdapterError(field, f"has {len(value)} tokens, at most {MAX_TOKEN_ROWS}")
    if len(set(value)) != len(value):
        raise AdapterError(field, "names a token twice")
    return tuple(value)
