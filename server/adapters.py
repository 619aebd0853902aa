"""The names a client may put in ``model``: the base, and every adapter under its own name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..engine.config import AdapterSource
from ..lora.catalog import AdapterCatalog
from ..lora.errors import BranchlineError
from .config import AdapterSpec
from .errors import ApiError, bad_field
from .hub import find_directory
from .tokenizer import find_chat_template


class CatalogError(BranchlineError):
    """A name or path on the command line that can't be served."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name. ``digest`` None is the base model; ``root`` is the directory behind it."""

    name: str
    root: str
    digest: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every served name. ``base`` is the base's first name and the parent of all adapters."""

    base: ServedModel
    models: Mapping[str, ServedModel]
    sources: tuple[AdapterSource, ...] = field(default=())

    def resolve(self, name: str | None) -> ServedModel:
        """The model of that name; raises ApiError 400 without one, 404 for an unknown one."""
        if name is None:
            raise bad_field("model", "is required", code="missing_required_parameter")
        model = self.models.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def _unknown(self, name: str) -> ApiError:
        near = difflib.get_close_matches(name[:200], self.models, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return ApiError(
            f"The model {name[:200]!r} does not exist.{hint} /v1/models lists those that do.",
            status=404,
            param="model",
            code="model_not_found",
        )


def find_adapter(name: str, path_or_id: str) -> AdapterSpec:
    """An adapter by the directory it lies in, downloaded if it is a hub id; raises CatalogError."""
    try:
        return AdapterSpec(name, find_directory(path_or_id))
    except BranchlineError as error:
        raise CatalogError(f"adapter {name}: {error}") from error


def open_catalog(
    directory: str, base_names: Sequence[str], adapters: Iterable[AdapterSpec]
) -> Catalog:
    """Read every adapter's config and digest; raises CatalogError.

    ``directory`` is the base model's. Adapters of equal bytes under several names are one
    source for the engine.
    """
    served = {name: ServedModel(name, directory) for name in base_names}
    catalog = AdapterCatalog(base_names[0])
    sources: dict[str, AdapterSource] = {}
    for spec in adapters:
        if spec.name in served:
            raise CatalogError(f"adapter {spec.name}: the name is already taken")
        try:
            entry = catalog.register(spec.name, spec.path)
            template = find_chat_template(spec.path)
        except BranchlineError as error:
            raise CatalogError(f"adapter {spec.name}: {error}") from error
        served[spec.name] = ServedModel(spec.name, spec.path, entry.digest, template)
        sources.setdefault(entry.digest, AdapterSource(digest=entry.digest, path=entry.path))
    return Catalog(served[base_names[0]], served, tuple(sources.values()))
