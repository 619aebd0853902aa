"""``branchline tenant``: tenants, their keys and what they used, of a running gateway."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from ..fleet.admin_client import Fields, name_path
from ..fleet.admin_console import Console
from ..fleet.admin_console import command as admin_command
from ..fleet.identity import MAX_WEIGHT, MIN_WEIGHT
from .records import MAX_PRIORITY, MIN_PRIORITY
from .tables import key_table, tenant_details, tenant_table, usage_table

Command = TypeVar("Command", bound=Callable[..., Any])

PAGE = 500
DEFAULT_URL = "http://127.0.0.1:8080"
LIMITS = (
    *("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"),
    *("max_in_flight", "budget_tokens_per_day"),
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
command = functools.partial(admin_command, default_url=DEFAULT_URL)

_HELP = {"help_option_names": ["-h", "--help"]}
_DAY = click.DateTime(["%Y-%m-%d"])


@click.group("tenant", context_settings=_HELP)
def tenant_command() -> None:
    """Tenants of a running gateway: their terms, their keys, what they used."""


@click.group("key", context_settings=_HELP)
def key_command() -> None:
    """Keys of a tenant: create, list, rotate, revoke."""


tenant_command.add_command(key_command)


def parse_limit(text: str) -> str:
    """A count, or ``none``; raises BadParameter."""
    if text != "none" and not re.fullmatch("[0-9]{1,15}", text):
        raise click.BadParameter("must be a whole number, or none")
    return text


def parse_end(text: str) -> float:
    """``30d``, ``12h``, ``45m`` or ``90s`` from now, or a UTC day or moment; as Unix seconds."""
    span = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if span is not None:
        return time.time() + int(span[1]) * _UNITS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        problem = "must be as 30d, 12h, 45m, or a date as 2030-01-31"
        raise click.BadParameter(problem) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _limit_option(name: str, **options: Any) -> Callable[[Command], Command]:
    return click.option(name, type=parse_limit, metavar="N|none", **options)


def _end_option(**options: Any) -> Callable[[Command], Command]:
    return click.option("--expires", type=parse_end, metavar="WHEN", **options)


def _path(name: str, *rest: str) -> str:
    return "/".join(["/admin/tenants", name_path(name, "a tenant"), *rest])


@command(tenant_command, "list")
def list_tenants(console: Console) -> None:
    """All tenants."""
    tenants = [entry for page in _pages(console) for entry in page["tenants"]]
    console.show({"tenants": tenants}, tenant_table(tenants))


def _pages(console: Console) -> Iterator[Fields]:
    query: Fields = {"limit": PAGE}
    has_more = True
    while has_more:
        page = console.client.call("GET", "/admin/tenants", params=query)
        yield page
        has_more = page["has_more"]
        query["after"] = page["last"]


@command(tenant_command, "show")
@click.argument("name")
def show_tenant(console: Console, name: str) -> None:
    """Everything about one tenant."""
    entry = console.client.call("GET", _path(name))
    console.show(entry, tenant_details(entry))


@command(tenant_command, "put")
@click.argument("name")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[=MODEL]",
    help="A model it may use, maybe under a name of its own; repeatable.  [default: all]",
)
@click.option("--weight", type=click.FloatRange(MIN_WEIGHT, MAX_WEIGHT), help="[default: 1]")
@click.option(
    "--priority",
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    help="Lower runs first and is shed last.  [default: 0]",
)
@click.option("--group", help="Whom it shares cached prefixes with; '': nobody.  [default: '']")
@click.option("--disable/--enable", "disabled", default=None, help="Whether its keys open nothing.")
@_limit_option("--requests-per-minute")
@_limit_option("--input-tokens-per-minute")
@_limit_option("--output-tokens-per-minute")
@_limit_option("--max-in-flight", help="Requests at once.")
@_limit_option("--budget-tokens-per-day", help="Input and output, a UTC day.")
@click.option("--update", is_flag=True, help="Keep what is not given, as it is now.")
def put_tenant(
    console: Console, name: str, models: tuple[str, ...], update: bool, **given: Any
) -> None:
    """Make NAME, or replace its terms; its keys stay."""
    body, headers = _current(console, name) if update else ({"limits": {}}, {})
    body.update({k: v for k, v in given.items() if k not in LIMITS and v is not None})
    body["limits"].update(
        {
            limit: None if value == "none" else int(value)
            for limit, value in given.items()
            if limit in LIMITS and value is not None
        }
    )
    body["group"] = body.get("group") or None
    if models:
        body["models"] = parse_models(models)
    entry = console.client.call("PUT", _path(name), json=body, headers=headers)
    console.show(entry, tenant_details(entry))


def _current(console: Console, name: str) -> tuple[Fields, dict[str, str]]:
    """A tenant's terms as a body, and the header that says that they are still these."""
    entry = console.client.call("GET", _path(name))
    fields = ("models", "weight", "priority", "group", "limits", "disabled")
    return {field: entry[field] for field in fields}, {"if-match": str(entry["revision"])}


def parse_models(words: Sequence[str]) -> list[str] | dict[str, str]:
    """Names, or where one has ``=MODEL`` a map of all; raises BadParameter."""
    pairs = [word.partition("=") for word in words]
    if any(not name or (equals and not target) for name, equals, target in pairs):
        raise click.BadParameter("must be NAME or NAME=MODEL", param_hint="--model")
    if len({name for name, _, _ in pairs}) != len(pairs):
        raise click.BadParameter("a name is given twice", param_hint="--model")
    if not any(equals for _, equals, _ in pairs):
        return [name for name, _, _ in pairs]
    return {name: target or name for name, _, target in pairs}


@command(tenant_command, "delete")
@click.argument("name")
def delete_tenant(console: Console, name: str) -> None:
    """Remove a tenant and its keys; what it has running finishes."""
    answer = console.client.call("DELETE", _path(name))
    console.show(answer, f"{name} is removed, with {answer['num_keys']} keys")


@command(tenant_command, "usage")
@click.argument("name", required=False)
@click.option("--day", type=_DAY, help="A UTC day.  [default: today]")
@click.option("--from", "first", type=_DAY, help="The first of several.")
@click.option("--to", "last", type=_DAY, help="The last of them.")
def show_usage(console: Console, name: str | None, **days: datetime | None) -> None:
    """What NAME used, or all did: requests and tokens by day and model."""
    names = {"day": "day", "first": "from", "last": "to"}
    query = {names[key]: f"{day:%Y-%m-%d}" for key, day in days.items() if day is not None}
    if name is not None:
        query["tenant"] = name
    report = console.client.call("GET", "/admin/usage", params=query)
    console.show(report, usage_table(report))


@command(key_command, "create")
@click.argument("name")
@click.option(
    "--expires",
    type=parse_end,
    metavar="WHEN",
    help="30d, 12h, 45m from now, or a date.  [default: never]",
)
def create_key(console: Console, name: str, expires: float | None) -> None:
    """Make a key for NAME and print it, this one time."""
    body = {} if expires is None else {"expires_at": expires}
    answer = console.client.call("POST", _path(name, "keys"), json=body)
    _show_new(console, answer)


def _show_new(console: Console, answer: Fields) -> None:
    """The key alone on stdout, so that a script can take it."""
    if not console.as_json:
        click.echo(f"key {answer['id']} of {answer['tenant']}; it is not shown again:", err=True)
    console.show(answer, answer["key"])


@command(key_command, "list")
@click.argument("name")
def list_keys(console: Console, name: str) -> None:
    """The keys of NAME by id, without their secrets."""
    answer = console.client.call("GET", _path(name, "keys"))
    console.show(answer, key_table(answer["keys"]))


@command(key_command, "rotate")
@click.argument("name")
@click.argument("key_id")
@click.option(
    "--grace",
    type=click.FloatRange(0, 31_536_000),
    default=0.0,
    show_default=True,
    help="Seconds for which the old key still opens.",
)
@click.option(
    "--expires", type=parse_end, metavar="WHEN", help="When the new key ends.  [default: never]"
)
def rotate_key(
    console: Console, name: str, key_id: str, grace: float, expires: float | None
) -> None:
    """Make a new key in place of an old one."""
    body = {"grace_seconds": grace} | ({} if expires is None else {"expires_at": expires})
    path = _path(name, "keys", name_path(key_id, "a key"), "rotate")
    _show_new(console, console.client.call("POST", path, json=body))


@command(key_command, "revoke")
@click.argument("name")
@click.argument("key_id")
def revoke_key(console: Console, name: str, key_id: str) -> None:
    """Remove a key: it opens no more, at all gateways within a second."""
    answer = console.client.call("DELETE", _path(name, "keys", name_path(key_id, "a key")))
    console.show(answer, f"key {key_id} of {name} is removed")
