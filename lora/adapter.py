"""What an adapter says of itself: PEFT's ``adapter_config.json``, and its identity, the digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .activation import FIELD as INVOCATION_FIELD
from .activation import parse_invocation
from .errors import AdapterError
from .files import config_file, unique_keys, weights_files
from .peft_fields import MAX_RANK, FieldReader, Pattern, TokenRows
from .refusals import refuse_unserved

__all__ = ["MAX_RANK", "AdapterConfig", "Pattern", "TokenRows", "digest_adapter"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of a LoRA configuration that decide its output, as PEFT reads them.

    Patterns keep their order: the first key that matches a module wins. ``target_modules``,
    ``exclude_modules``: names (also ends of names), or one regular expression as a string.
    ``lora.matcher`` says which modules they mean. ``bias``: none, all or lora_only.
    ``token_rows``: ``trainable_token_indices`` by module. ``invocation_tokens`` make it an
    activated LoRA (see ``lora.activation``); None for a plain one.
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
    use_dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    token_rows: TokenRows = ()
    ensure_weight_tying: bool = False

    @classmethod
    def from_directory(cls, path: str | Path) -> AdapterConfig:
        """Read ``adapter_config.json``; raises AdapterError, naming what is not served."""
        file = config_file(path)
        try:
            fields = json.loads(file.read_bytes(), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise AdapterError(file.name, f"is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise AdapterError(file.name, "must hold one JSON object")
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> AdapterConfig:
        """Check the fields of a parsed ``adapter_config.json``; matches no pattern."""
        refuse_unserved(fields)
        read = FieldReader(fields)
        return cls(
            rank=read.rank("r"),
            alpha=read.number("lora_alpha"),
            use_rslora=read.flag("use_rslora"),
            rank_pattern=read.rank_pattern(),
            alpha_pattern=read.alpha_pattern(),
            target_modules=read.modules("target_modules"),
            exclude_modules=read.modules("exclude_modules"),
            layers_to_transform=read.layers(),
            layers_pattern=read.layers_pattern(),
            invocation_tokens=parse_invocation(fields.get(INVOCATION_FIELD)),
            use_dora=read.flag("use_dora"),
            bias=read.bias(),
            lora_bias=read.flag("lora_bias"),
            modules_to_save=read.modules_to_save(),
            token_rows=read.token_rows(),
            ensure_weight_tying=read.flag("ensure_weight_tying"),
        )

    @property
    def max_rank(self) -> int:
        """The highest rank any module can have."""
        return max([self.rank, *(int(rank) for _, rank in self.rank_pattern)])

    @property
    def targets_all_linear(self) -> bool:
        """Whether it targets every linear but the output layer."""
        targets = self.target_modules
        return isinstance(targets, str) and targets.lower() == "all-linear"

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
        beyond_plain = {
            INVOCATION_FIELD: self.invocation_tokens,
            "use_dora": self.use_dora,
            "bias": None if self.bias == "none" else self.bias,
            "lora_bias": self.lora_bias,
            "modules_to_save": self.modules_to_save,
            "trainable_token_indices": self.token_rows,
        }
        return fields | {name: value for name, value in beyond_plain.items() if value}


def digest_adapter(path: str | Path) -> str:
    """sha256 in hex of the effective configuration and the bytes of the weights files.

    Neither the directory's name nor fields without effect on the output change it. Raises
    AdapterError as ``AdapterConfig.from_directory`` does.
    """
    fields = AdapterConfig.from_directory(path).effective()
    files = weights_files(path)
    if len(files) > 1:
        fields["shards"] = [file.stat().st_size for file in files.values()]
    config = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(b"branchline adapter 1\n%d\n" % len(config) + config)
    for weights in files.values():
        with weights.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
