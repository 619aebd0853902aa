"""``--tenants FILE.yaml``: tenants and digests of their keys, applied at the start.

```yaml
prune: false              # true: tenants and keys that are not in the file are removed
tenants:
  acme:                   # the fields of PUT /admin/tenants/{name}, and keys
    models: [legal]
    limits: {requests_per_minute: 600}
    keys: ["sha256:9f86d0…", "env:ACME_KEY"]
```
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from ..fleet.identity import digest_key
from ..store.documents import Change, Put, Removal
from ..store.local_copy import LocalCopy
from .body import BodyError, convert
from .keys import MAX_KEY_BYTES, MIN_SECRET_LENGTH, ending_of, id_of
from .records import (
    MAX_KEYS,
    NAME_RULE,
    KeyRecord,
    PutTenant,
    TenantRecord,
    check_models,
    decode,
    is_name,
)
from .tenants import make_record

MAX_FILE_BYTES = 16 << 20

_DIGEST, _VARIABLE = "sha256:", "env:"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: dict[Any, Any]
    prune: bool = False


class _Tenant(PutTenant, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: Annotated[list[str], msgspec.Meta(max_length=MAX_KEYS)] = msgspec.field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True)
class DeclaredKey:
    """A key's sha256, and its last characters where the key itself was given."""

    digest: bytes = field(repr=False)
    ending: str = ""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a file asks for; called with what is there, it says what is to be changed."""

    tenants: Mapping[str, PutTenant]
    keys: Mapping[str, tuple[DeclaredKey, ...]]
    prune: bool = False
    clock: Callable[[], float] = time.time

    def __call__(self, copy: LocalCopy) -> Change:
        """Puts of what differs; with ``prune`` removals of what the file does not name."""
        puts = [put for name in self.tenants for put in self._puts(name, copy)]
        return Change(puts, list(self._removals(copy)) if self.prune else [])

    def _puts(self, name: str, copy: LocalCopy) -> Iterator[Put]:
        there = copy.get("tenant", name)
        old = decode(there, TenantRecord) if there else None
        record = make_record(name, self.tenants[name], old, self.clock())
        if record != old:
            yield "tenant", name, msgspec.json.encode(record), None
        for key in self.keys[name]:
            document = copy.get("key", key.digest.hex())
            known = decode(document, KeyRecord) if document else None
            owner = (name, record.incarnation)
            if known is None or (known.tenant, known.incarnation) != owner:
                yield "key", key.digest.hex(), self._key(key, record), None

    def _key(self, key: DeclaredKey, tenant: TenantRecord) -> bytes:
        record = KeyRecord(
            id=id_of(key.digest),
            tenant=tenant.name,
            incarnation=tenant.incarnation,
            created=self.clock(),
            ending=key.ending,
        )
        return msgspec.json.encode(record)

    def _removals(self, copy: LocalCopy) -> Iterator[Removal]:
        declared = {key.digest.hex() for keys in self.keys.values() for key in keys}
        yield from (("tenant", name) for name in copy.items("tenant") if name not in self.tenants)
        yield from (("key", name) for name in copy.items("key") if name not in declared)


def read_tenants_file(path: Path, environment: Mapping[str, str]) -> Declaration:
    """The file's declaration; raises ValueError: one line with the file and the key in it."""
    try:
        return _parse(_load(path), environment)
    except ValueError as error:
        raise ValueError(f"--tenants {path}: {' '.join(str(error).split())}") from None


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ValueError(f"has over {MAX_FILE_BYTES} bytes")
        return yaml.load(raw.decode(), Loader=_Loader)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        # Without the library's words, which quote the file: it may hold keys.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"is not valid YAML{where}") from None


class _Loader(yaml.SafeLoader):
    """Of two equal names of a mapping the last one would win; here neither does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        twice = {name for name, count in names.items() if count > 1} - {"<<"}
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(f"{min(twice)}: is there twice in the mapping from line {line} on")
        return super().construct_mapping(node, deep)


def _parse(fields: Any, environment: Mapping[str, str]) -> Declaration:
    file = convert(fields, _File)
    tenants: dict[str, PutTenant] = {}
    keys: dict[str, tuple[DeclaredKey, ...]] = {}
    owners: dict[bytes, str] = {}
    for name, given in file.tenants.items():
        where = f"tenants.{str(name)[:128]}"
        if not (isinstance(name, str) and is_name(name)):
            raise BodyError(where, f"a name must be {NAME_RULE}; quote what looks like a number")
        tenant = _tenant(where, given)
        tenants[name] = _without_keys(tenant)
        keys[name] = tuple(
            _key(f"{where}.keys[{index}]", text, environment)
            for index, text in enumerate(tenant.keys)
        )
        for index, key in enumerate(keys[name]):
            if owners.setdefault(key.digest, where) != where:
                raise BodyError(f"{where}.keys[{index}]", f"is a key of {owners[key.digest]} too")
    return Declaration(tenants, keys, file.prune)


def _tenant(where: str, given: Any) -> _Tenant:
    try:
        tenant = convert({} if given is None else given, _Tenant)
    except BodyError as error:
        raise BodyError(f"{where}.{error.param}".rstrip("."), error.problem) from None
    if problem := check_models(tenant.models):
        raise BodyError(f"{where}.models", problem)
    return tenant


def _without_keys(tenant: _Tenant) -> PutTenant:
    return PutTenant(**{name: getattr(tenant, name) for name in PutTenant.__struct_fields__})


def _key(where: str, text: str, environment: Mapping[str, str]) -> DeclaredKey:
    """A digest, or a variable's key; what else stands there is not shown."""
    if text.startswith(_DIGEST):
        digits = text.removeprefix(_DIGEST).strip().lower()
        if len(digits) == 64 and set(digits) <= set("0123456789abcdef"):
            return DeclaredKey(bytes.fromhex(digits))
    elif text.startswith(_VARIABLE):
        name = text.removeprefix(_VARIABLE)
        key = environment.get(name, "").strip()
        if not MIN_SECRET_LENGTH <= len(key.encode("utf-8", "surrogateescape")) <= MAX_KEY_BYTES:
            raise BodyError(
                where,
                f"the variable {name} must hold a key of {MIN_SECRET_LENGTH} to {MAX_KEY_BYTES} "
                "bytes",
            )
        return DeclaredKey(digest_key(key), ending_of(key))
    raise BodyError(
        where, "must be sha256: with 64 hex digits, or env:NAME (what is there may be a secret)"
    )
