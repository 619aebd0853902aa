"""What the store holds of tenants and keys, and the bodies that admins send."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec

from ..fleet.identity import MAX_WEIGHT, MIN_WEIGHT, PROBE_TENANT
from ..limits.limits import NO_LIMITS, Count, Limits
from ..store.documents import Document

logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=msgspec.Struct)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
NAME_RULE = (
    "1 to 128 of letters, digits and . _ : @ - , a letter or digit first, and not " + PROBE_TENANT
)
MIN_PRIORITY, MAX_PRIORITY = -1000, 1000
MAX_MODELS = 1000
ALL_MODELS = "*"
MAX_KEYS = 100
"""Keys of one tenant."""

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Models = (
    Annotated[list[ModelName], msgspec.Meta(max_length=MAX_MODELS)]
    | Annotated[dict[ModelName, ModelName], msgspec.Meta(max_length=MAX_MODELS)]
    | None
)
Weight = Annotated[float, msgspec.Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
Priority = Annotated[int, msgspec.Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)]
UnixSeconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
HexDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class LimitFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``Limits`` as an admin writes them."""

    requests_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    max_in_flight: Count | None = None
    budget_tokens_per_day: Count | None = None

    def limits(self) -> Limits:
        """As the limiter takes them."""
        return Limits(**msgspec.structs.asdict(self))


class PutTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``PUT /admin/tenants/{name}``; what is left out gets its default."""

    models: Models = None
    weight: Weight = 1.0
    priority: Priority = 0
    group: Name | None = None
    limits: LimitFields = LimitFields()
    disabled: bool = False


class PostKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants/{name}/keys``; without ``expires_at`` it does not end."""

    expires_at: UnixSeconds | None = None


class RotateKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``rotate``: for how long the old key still opens."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 0.0
    expires_at: UnixSeconds | None = None


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tenant; read leniently, since a newer gateway may have written it.

    ``models`` are names of the fleet, or the tenant's own names with what they stand for; None:
    all. Lower ``priority`` runs first, and is shed last. Tenants of one ``group`` share cached
    prefixes. ``incarnation`` is drawn when the name is made: keys of an earlier tenant of the
    same name do not open for this one. Times are Unix seconds.
    """

    name: str
    incarnation: str
    created: float
    models: list[str] | dict[str, str] | None = None
    weight: float = 1.0
    priority: int = 0
    group: str | None = None
    limits: Limits = NO_LIMITS
    disabled: bool = False

    @property
    def model_map(self) -> Mapping[str, str] | None:
        """The tenant's names and the fleet's; None: all, under their own names."""
        if self.models is None or ALL_MODELS in self.models:
            return None
        if isinstance(self.models, dict):
            return self.models
        return {name: name for name in self.models}

    @property
    def body(self) -> PutTenant:
        """What would put it like this."""
        return PutTenant(
            models=self.models,
            weight=self.weight,
            priority=self.priority,
            group=self.group,
            limits=LimitFields(**msgspec.structs.asdict(self.limits)),
            disabled=self.disabled,
        )


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key; the store has it under its sha256 in hex, and the key itself nowhere.

    ``ending`` are its last characters, to tell keys apart by.
    """

    id: str
    tenant: str
    incarnation: str
    created: float
    ending: str = ""
    expires_at: float | None = None


def decode(document: Document, kind: type[RecordT]) -> RecordT | None:
    """What a document holds; None, and a word in the log, for what this gateway can't read."""
    try:
        return msgspec.json.decode(document.data, type=kind)
    except msgspec.DecodeError as error:
        logger.error("%s %s of the store can't be read: %s", document.kind, document.name, error)
        return None


def check_models(models: list[str] | dict[str, str] | None) -> str | None:
    """What is wrong with ``models``; None: nothing."""
    for name in models or ():
        if not name.isprintable() or name != name.strip():
            return "a name must be printable, with no space around it"
    if isinstance(models, dict):
        if ALL_MODELS in models:
            return f"{ALL_MODELS!r} stands for all models in a list, not in a map"
        if not all(target.isprintable() and target.strip() == target for target in models.values()):
            return "a name must be printable, with no space around it"
    return None


def is_name(text: str) -> bool:
    """Whether a tenant may be called that."""
    return (
        re.fullmatch(NAME_PATTERN, text) is not None and "\n" not in text and text != PROBE_TENANT
    )
