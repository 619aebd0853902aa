"""Items as they are kept with a response and listed: with ids, contents as parts, no more of them
than a model is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...gateway.fleet.kept_items import item_id

Item = dict[str, Any]

_IDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def listed(item: Mapping[str, Any], answer_id: str, index: int) -> Item:
    """An item of the input of the response ``answer_id``."""
    kind = item.get("type", "message")
    own_id = item_id(_IDS[kind], answer_id, "input", index)
    shown = {"id": own_id, **item, "type": kind, "status": "completed"}
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        is_output = item["role"] == "assistant"
        part = {"type": "output_text" if is_output else "input_text", "text": content}
        shown["content"] = [{**part, "annotations": []} if is_output else part]
    return without_extras(shown)


def without_extras(item: Item) -> Item:
    """Without log-probabilities and annotations, which say nothing to a model.

    They may be many times its text, and would be kept with each response that comes after.
    """
    content = item.get("content")
    if not isinstance(content, list):
        return item
    return {**item, "content": [_bare(part) for part in content]}


def _bare(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    bare = {name: value for name, value in part.items() if name != "logprobs"}
    return {**bare, "annotations": []} if "annotations" in bare else bare
