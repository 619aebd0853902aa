"""The names a client may put in ``model``: base, adapters, aliases, and who is being answered."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..engine.adapter_format import AdapterFacts
from .adapters.leases import AdapterLeases, Lease
from .adapters.sources import AdapterSource
from .aliases import AliasTarget, pick_target
from .errors import ApiError, bad_field

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

__all__ = ["AdapterVersion", "AliasTarget", "Catalog", "Lease", "ServedModel"]

# An unknown name is compared letter by letter with so many of those that begin like it.
MAX_COMPARED = 40
MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of one name; ``number`` is given once, until the name is deleted.

    ``text_digest`` is of the tokenizer and template files that it ships, None if it has none.
    ``created`` is Unix seconds.
    """

    number: int
    digest: str
    text_digest: str | None
    source: AdapterSource
    created: float
    facts: AdapterFacts

    def has_bytes_of(self, other: AdapterVersion) -> bool:
        """Whether both answer alike."""
        return (self.digest, self.text_digest) == (other.digest, other.text_digest)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request is answered with, under the name that it used.

    ``digest`` None is the base model; ``root`` is what the adapter was made of, the directory of
    the base. ``tokenizer`` and ``chat_template`` None are the base's; ``text_digest`` is of the
    files that they were read from. ``uses_base_prefix``: its prompts begin in the base's KV.
    """

    name: str
    root: str
    digest: str | None = None
    chat_template: str | None = None
    tokenizer: Tokenizer | None = None
    version: int | None = None
    vocab_size: int | None = None
    created: int | None = None
    text_digest: str | None = None
    uses_base_prefix: bool = False


@dataclass(frozen=True, slots=True)
class _Adapter:
    """One name's versions by number; ``current`` is none of them while that one can't be had."""

    versions: Mapping[int, ServedModel]
    current: int


@dataclass(frozen=True, slots=True)
class _Alias:
    targets: Sequence[AliasTarget]
    created: int | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a digest: whose tokenizer it has, and the names that give it now."""

    tokenizer: Tokenizer | None
    names: list[str] = field(default_factory=list)


class Catalog:
    """All names, as they are now. Every change is one step: no request sees half of it.

    ``base`` is the base's first name and the parent of all adapters. ``leases`` are held by
    requests from ``lease`` to the end of their response.
    """

    def __init__(self, directory: str, base_names: Sequence[str]) -> None:
        self.base = ServedModel(base_names[0], directory)
        self.base_names = tuple(base_names)
        self.leases = AdapterLeases()
        self._bases = {name: ServedModel(name, directory) for name in base_names}
        self._adapters: dict[str, _Adapter] = {}
        self._aliases: dict[str, _Alias] = {}
        self._known: dict[str, _Known] | None = None
        self._sorted: list[str] | None = None

    def put(self, name: str, versions: Mapping[int, ServedModel], current: int) -> None:
        """Serve ``name`` with its version ``current``; the others are for aliases."""
        assert current in versions
        self._set(name, _Adapter(MappingProxyType(dict(versions)), current))

    def fail(self, name: str, versions: Mapping[int, ServedModel]) -> None:
        """Keep ``name`` known while its current version can't be served."""
        self._set(name, _Adapter(MappingProxyType(dict(versions)), 0))

    def _set(self, name: str, adapter: _Adapter) -> None:
        assert name not in self._aliases
        self._adapters[name] = adapter
        self._changed()

    def remove(self, name: str) -> None:
        """Forget an adapter's name."""
        del self._adapters[name]
        self._changed()

    def put_alias(
        self, name: str, targets: Sequence[AliasTarget], created: int | None = None
    ) -> None:
        """Point an alias at adapters that are there."""
        assert name not in self._adapters
        self._aliases[name] = _Alias(tuple(targets), created)
        self._changed()

    def remove_alias(self, name: str) -> None:
        """Forget an alias."""
        del self._aliases[name]
        self._changed()

    @property
    def adapter_names(self) -> list[str]:
        """Names of adapters, in the order they came."""
        return list(self._adapters)

    @property
    def alias_names(self) -> list[str]:
        """Names of aliases, in the order they came."""
        return list(self._aliases)

    def can_serve(self, name: str) -> bool:
        """Whether an adapter's current version is there to answer."""
        adapter = self._adapters[name]
        return adapter.current in adapter.versions

    def resolve(self, name: str | None, key: str | None = None) -> ServedModel:
        """What answers ``name`` now; ``key`` decides between the targets of a split alias.

        Raises ApiError 400 without a name, 404 for one that is unknown or can't be served.
        """
        if name is None:
            raise bad_field("model", "is required", code="missing_required_parameter")
        if name in self._bases:
            return self._bases[name]
        if name in self._adapters:
            return self._version(name, None)
        if name in self._aliases:
            alias = self._aliases[name]
            target = pick_target(name, alias.targets, key or "")
            model = self._version(target.adapter, target.version)
            return replace(model, name=name, created=alias.created)
        raise self._unknown(name)

    def is_alias(self, name: str | None) -> bool:
        """Whether ``resolve`` looks at its ``key`` for this name."""
        return name in self._aliases

    def _version(self, name: str, number: int | None) -> ServedModel:
        adapter = self._adapters[name]
        model = adapter.versions.get(adapter.current if number is None else number)
        if model is not None:
            return model
        # No 5xx: it would tell a router that this server is broken, for all its tenants.
        # The reason names paths and addresses of the operator's, which are nobody's business.
        raise ApiError(
            f"The model {name!r} can't be served now: what it is made of can't be had. Who "
            "administers this server can see why.",
            status=404,
            param="model",
            code="model_not_available",
        )

    def lease(self, model: ServedModel) -> Lease:
        """Keep what answers a request until its ``release``; at once after ``resolve``."""
        return self.leases.take(model.digest, model.name)

    def models(self) -> list[ServedModel]:
        """Base names, adapters, aliases, each in the order they came; only what can be served.

        A split alias is shown as its leading target.
        """
        adapters = [
            a.versions[a.current] for a in self._adapters.values() if a.current in a.versions
        ]
        aliases = [self._shown_alias(name) for name in self._aliases]
        return [*self._bases.values(), *adapters, *(model for model in aliases if model)]

    def _shown_alias(self, name: str) -> ServedModel | None:
        alias = self._aliases[name]
        leading = max(alias.targets, key=lambda target: target.percent)
        try:
            model = self._version(leading.adapter, leading.version)
        except ApiError:
            return None
        return replace(model, name=name, created=alias.created)

    def names_of(self, digest: str | None) -> list[str]:
        """Names that give this version now, and those it is still answering under."""
        if digest is None:
            return list(self._bases)
        known = self._index().get(digest)
        names = [] if known is None else known.names
        return [*names, *(n for n in self.leases.names_of(digest) if n not in names)]

    def tokenizer_of(self, digest: str | None) -> Tokenizer | None:
        """The tokenizer that a name of this version brings, None where it is the base's."""
        known = None if digest is None else self._index().get(digest)
        return None if known is None else known.tokenizer

    def _changed(self) -> None:
        self._known = self._sorted = None

    def _index(self) -> dict[str, _Known]:
        """By digest; made anew when it is asked for after a change."""
        if self._known is not None:
            return self._known
        known = self._known = dict[str, _Known]()
        for name, adapter in self._adapters.items():
            for number, model in adapter.versions.items():
                assert model.digest is not None
                entry = known.setdefault(model.digest, _Known(model.tokenizer))
                if number == adapter.current:
                    entry.names.append(name)
        for name, alias in self._aliases.items():
            for digest in dict.fromkeys(map(self._digest_of, alias.targets)):
                if digest is not None:
                    known[digest].names.append(name)
        return known

    def _digest_of(self, target: AliasTarget) -> str | None:
        adapter = self._adapters[target.adapter]
        number = adapter.current if target.version is None else target.version
        model = adapter.versions.get(number)
        return None if model is None else model.digest

    def _unknown(self, name: str) -> ApiError:
        shown = name[:MAX_SHOWN]
        near = difflib.get_close_matches(shown, self._alike(shown), n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return ApiError(
            f"The model {shown!r} does not exist.{hint} /v1/models lists those that do.",
            status=404,
            param="model",
            code="model_not_found",
        )

    def _alike(self, name: str) -> list[str]:
        """The names worth a comparison, few enough for the event loop: those that begin alike."""
        if self._sorted is None:
            self._sorted = sorted([*self._bases, *self._adapters, *self._aliases])
        if len(self._sorted) <= MAX_COMPARED:
            return self._sorted
        place = bisect(self._sorted, name)
        return self._sorted[max(0, place - MAX_COMPARED // 2) : place + MAX_COMPARED // 2]
