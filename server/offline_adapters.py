"""The adapters of a program without a server: read once, from directories or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..engine.config import AdapterSource
from ..lora.adapter import digest_adapter
from ..lora.errors import BranchlineError
from ..lora.names import check_name
from .adapters.hub import find_directory
from .adapters.text import AdapterText, TextStore, check_vocabulary
from .catalog import Catalog, ServedModel


class CatalogError(BranchlineError):
    """A name or path that can't be served."""


def open_adapters(
    catalog: Catalog, adapters: Mapping[str, str], texts: TextStore
) -> tuple[AdapterSource, ...]:
    """Enter adapters by name, each in a directory or a hub id; returns them for the engine.

    Adapters of equal bytes under several names are one source. Raises CatalogError.
    """
    sources: dict[str, AdapterSource] = {}
    for name, path_or_id in adapters.items():
        if name in catalog.base_names:
            raise CatalogError(f"adapter {name}: the name is already taken")
        try:
            check_name(name)
            directory = find_directory(path_or_id)
            digest = digest_adapter(directory)
            text = texts.read(directory)
        except BranchlineError as error:
            raise CatalogError(f"adapter {name}: {error}") from error
        model = ServedModel(
            name,
            directory,
            digest,
            chat_template=None if text is None else text.chat_template,
            tokenizer=None if text is None else text.tokenizer,
            version=1,
        )
        catalog.put(name, {1: model}, 1)
        sources.setdefault(digest, AdapterSource(digest=digest, path=directory))
    return tuple(sources.values())


def note_vocabularies(
    catalog: Catalog, vocab_sizes: Mapping[str, int | None], base_vocab_size: int
) -> None:
    """Enter how many tokens each adapter has, by digest, once the engine knows.

    Raises CatalogError where an adapter's tokenizer gives more than that.
    """
    for name in catalog.adapter_names:
        model = catalog.resolve(name)
        assert model.digest is not None, "it is an adapter"
        vocab_size = vocab_sizes[model.digest]
        try:
            text = AdapterText("", model.tokenizer, model.chat_template)
            check_vocabulary(text, vocab_size or base_vocab_size)
        except BranchlineError as error:
            raise CatalogError(f"adapter {name}: {error}") from error
        catalog.put(name, {1: replace(model, vocab_size=vocab_size)}, 1)
