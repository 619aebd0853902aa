"""``branchline adapter``: list, put, move, pin and remove the adapters of a running server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from tqdm import tqdm

from ...gateway.fleet.admin_client import AdminClient, Fields, name_path
from ...gateway.fleet.admin_console import Console, command
from .alias_cli import alias_command
from .pack import Upload
from .tables import (
    adapter_details,
    adapter_table,
    number_of_bytes,
    version_table,
)

PAGE = 500

_TIERS = click.Choice(["host", "device"])
_tier_option = click.option("--tier", type=_TIERS, default="device", show_default=True)
_version_option = click.option("--version", type=click.IntRange(1), help="A version's number.")


@click.group("adapter", context_settings={"help_option_names": ["-h", "--help"]})
def adapter_command() -> None:
    """Adapters of a running server: list, put, pin, load, evict, roll back, remove."""


adapter_command.add_command(alias_command)


@command(adapter_command, "list")
def list_adapters(console: Console) -> None:
    """All adapters."""
    adapters = [entry for page in _pages(console) for entry in page["adapters"]]
    console.show({"adapters": adapters}, adapter_table(adapters))


def _pages(console: Console) -> Iterator[Fields]:
    query: Fields = {"limit": PAGE}
    has_more = True
    while has_more:
        page = console.client.call("GET", "/admin/adapters", params=query)
        yield page
        has_more = page["has_more"]
        query["after"] = page["last"]


@command(adapter_command, "get")
@click.argument("name")
def get_adapter(console: Console, name: str) -> None:
    """Everything about one adapter."""
    entry = console.client.call("GET", f"/admin/adapters/{name_path(name)}")
    console.show(entry, adapter_details(entry))


@command(adapter_command, "put")
@click.argument("name")
@click.argument("source")
@click.option("--upload", is_flag=True, help="SOURCE is a directory or an archive here.")
@click.option("--pin", type=_TIERS, help="Keep it there.")
def put_adapter(console: Console, name: str, source: str, upload: bool, pin: str | None) -> None:
    """Add NAME, or replace it while it is used.

    SOURCE is what the server fetches: a directory of its machine, a URL or a hub id; with
    --upload, a directory or an archive of this one.
    """
    path = f"/admin/adapters/{name_path(name)}"
    if upload:
        answer = _upload(console.client, path, Path(source), pin)
    else:
        body = {"source": source} | ({} if pin is None else {"pin": pin})
        _say("the server fetches and checks it …")
        answer = console.client.call("PUT", path, json=body)
    version = answer["adapter"]["version"]
    word = "is version" if answer["changed"] else "already was version"
    console.show(answer, f"{name} {word} {version}, digest {answer['adapter']['digest'][:8]}")


def _upload(client: AdminClient, path: str, source: Path, pin: str | None) -> Fields:
    if not source.exists():
        raise click.ClickException(f"--upload: there is no {source} here")
    upload = Upload.of(source)
    params = {} if pin is None else {"pin": pin}
    return client.call(
        "PUT", path, params=params, headers=upload.headers, content=_with_progress(upload)
    )


def _with_progress(upload: Upload) -> Iterator[bytes]:
    """What is sent, with a bar on a terminal, and a word when it is the server's turn."""
    is_terminal = sys.stderr.isatty()
    with tqdm(
        total=upload.num_bytes, unit="B", unit_scale=True, desc="upload", disable=not is_terminal
    ) as bar:
        for chunk in upload.read():
            yield chunk
            bar.update(len(chunk))
    _say("the server checks it …")


def _post(console: Console, name: str, verb: str, body: Fields | None = None) -> Fields:
    """One verb on one adapter."""
    path = f"/admin/adapters/{name_path(name)}/{verb}"
    return console.client.call("POST", path, json=body or {})


def _say(text: str) -> None:
    """A word about what takes long, for who waits at a terminal."""
    if sys.stderr.isatty():
        click.echo(text, err=True)


@command(adapter_command, "delete")
@click.argument("name")
@click.option(
    "--wait",
    type=click.FloatRange(0, 600),
    default=0.0,
    show_default=True,
    help="Seconds to wait until its memory is free.",
)
def delete_adapter(console: Console, name: str, wait: float) -> None:
    """Remove a name; requests in flight finish."""
    path = f"/admin/adapters/{name_path(name)}"
    patient = replace(console.client, timeout=max(console.client.timeout, wait + 30))
    answer = patient.call("DELETE", path, params={"wait": wait})
    console.show(answer, _removal(answer))


def _removal(answer: Fields) -> str:
    name, freed = answer["name"], answer["freed"]
    if not answer["done"]:
        return f"{name} is removed; {answer['requests']} requests still hold its memory"
    if freed is None:
        return f"{name} is removed; another name has the same bytes"
    sizes = [f"{number_of_bytes(freed[tier])} on {tier}" for tier in ("device", "host")]
    return f"{name} is removed; free again: {', '.join(sizes)}"


def _state_line(entry: Fields) -> str:
    tier = entry["tier"] or "none"
    return f"{entry['name']} version {entry['version']}: tier {tier}, pin {entry['pin'] or 'none'}"


@command(adapter_command, "pin")
@click.argument("name")
@_tier_option
def pin_adapter(console: Console, name: str, tier: str) -> None:
    """Keep an adapter at a tier."""
    entry = _post(console, name, "pin", {"tier": tier})
    console.show(entry, _state_line(entry))


@command(adapter_command, "unpin")
@click.argument("name")
def unpin_adapter(console: Console, name: str) -> None:
    """End a pin."""
    entry = _post(console, name, "unpin")
    console.show(entry, _state_line(entry))


@command(adapter_command, "load")
@click.argument("name")
@_tier_option
def load_adapter(console: Console, name: str, tier: str) -> None:
    """Bring an adapter to a tier now."""
    entry = _post(console, name, "load", {"tier": tier})
    console.show(entry, _state_line(entry))


@command(adapter_command, "evict")
@click.argument("name")
@_tier_option
def evict_adapter(console: Console, name: str, tier: str) -> None:
    """Take an adapter off a tier."""
    entry = _post(console, name, "evict", {"tier": tier})
    console.show(entry, _state_line(entry))


@command(adapter_command, "versions")
@click.argument("name")
def list_versions(console: Console, name: str) -> None:
    """The versions of an adapter that are kept."""
    answer = console.client.call("GET", f"/admin/adapters/{name_path(name)}/versions")
    console.show(answer, version_table(answer["versions"]))


@command(adapter_command, "rollback")
@click.argument("name")
@_version_option
def roll_back(console: Console, name: str, version: int | None) -> None:
    """Answer with an older version again; without --version, the one before."""
    answer = _post(console, name, "rollback", {"version": version})
    console.show(answer, _state_line(answer["adapter"]))
