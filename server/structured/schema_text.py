"""JSON schemas as the engine's grammars have them: bounded, with their options inside."""

from __future__ import annotations

import json
from typing import Any

from ..config import Limits
from ..errors import bad_field

OPTIONS = "x-guidance"

# Between two tokens of JSON: a line's end and an indentation, or a few blanks. A bound, because a
# model that is at a loss goes on with blanks for ever.
WHITESPACE = r"(\r?\n)?[ \t]{0,24}"


def schema_text(field: str, schema: object, limits: Limits, **options: Any) -> str:
    """The schema's text; raises ApiError for what is none, or too large.

    ``options`` are llguidance's (``JsonCompileOptions``), which a schema carries under ``OPTIONS``:
    what it has there itself does not count.
    """
    if not isinstance(schema, dict | bool):
        raise bad_field(field, "must be a JSON schema: an object, or a boolean")
    _check_size(field, schema, limits)
    fields = {} if schema is True else {"not": {}} if schema is False else schema
    given = {"whitespace_pattern": WHITESPACE, **options}
    text = json.dumps({**fields, OPTIONS: given}, ensure_ascii=False, separators=(",", ":"))
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise bad_field(field, "has half of a surrogate pair, which is no character") from None
    if num_bytes > limits.max_schema_bytes:
        raise bad_field(field, f"has more than {limits.max_schema_bytes} bytes")
    return text


def _check_size(field: str, schema: object, limits: Limits) -> None:
    """Raise ApiError for too many levels or nodes; a level at a time, so that none is too deep."""
    level, num_nodes = [schema], 0
    for depth in range(limits.max_schema_depth + 1):
        if not level:
            return
        num_nodes += len(level)
        if num_nodes > limits.max_schema_nodes:
            raise bad_field(field, f"has more than {limits.max_schema_nodes} values")
        if depth == limits.max_schema_depth:
            raise bad_field(field, f"is nested deeper than {limits.max_schema_depth} levels")
        level = [child for node in level for child in _children(node)]


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list) else []
