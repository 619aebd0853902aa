"""Text files as a trainer saves them beside an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast


def save_text(
    base: Path,
    directory: Path,
    *,
    added: Sequence[str] = (),
    eos: str | None = None,
    template: str | None = None,
) -> Path:
    """``base``'s tokenizer, changed and saved to ``directory`` by transformers itself."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(base))
    tokenizer.add_tokens(list(added), special_tokens=True)
    if eos is not None:
        tokenizer.eos_token = eos
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(str(directory))
    return directory


def edit_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= fields
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
