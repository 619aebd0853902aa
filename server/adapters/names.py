"""Which names an adapter or an alias may have."""

from __future__ import annotations

from ...gateway.fleet.versions import FLEET_PREFIX, is_fleet_name
from ...lora.errors import AdapterError
from ...lora.names import check_name
from ..catalog import Catalog
from ..errors import ApiError

# Last words of paths under /admin/adapters/{name}/ and /admin/aliases/{name}/.
VERBS = ("pin", "unpin", "load", "evict", "rollback", "versions")


def check_new_name(name: str, catalog: Catalog, field: str = "name") -> None:
    """Raise AdapterError for what is no name, ApiError 409 for one of the base model's."""
    try:
        check_name(name)
    except AdapterError as error:
        raise AdapterError(field, error.message) from None
    last = name.rpartition("/")[2]
    if last != name and last in VERBS:
        raise AdapterError(field, f"{name!r} must not end in /{last}, which is a verb of the API")
    if is_fleet_name(name):
        raise AdapterError(field, f"{name!r} must not begin with {FLEET_PREFIX}, as fleets' do")
    if name in catalog.base_names:
        raise taken(name, "the base model", field)


def taken(name: str, owner: str, field: str = "name") -> ApiError:
    """409: the name belongs to something of another kind."""
    return ApiError(
        f"{field}: {name!r} is the name of {owner}", status=409, param=field, code="name_taken"
    )


def not_there(name: str, kind: str, field: str = "name") -> ApiError:
    """404 for an adapter or an alias."""
    return ApiError(
        f"There is no {kind} {name[:200]!r}.", status=404, param=field, code=f"{kind}_not_found"
    )


def changed_meanwhile(name: str, field: str = "name") -> ApiError:
    """409: what was made ready is not what the name has by now."""
    return ApiError(
        f"{field}: {name!r} was deleted and added anew meanwhile",
        status=409,
        param=field,
        code="adapter_changed",
    )
