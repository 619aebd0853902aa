"""``branchline adapter alias``: names that point at adapters, at versions, at a split of them."""

from __future__ import annotations

import re

import click

from ...gateway.fleet.admin_client import Fields, name_path
from ...gateway.fleet.admin_console import Console, command
from .tables import alias_table

_TARGET = re.compile(r"([^,=]+)(?:,(\d{1,15}))?(?:=(\d+(?:\.\d+)?))?")


@click.group("alias")
def alias_command() -> None:
    """Aliases: names that point at adapters, at versions, or at a split of them."""


@command(alias_command, "list")
def list_aliases(console: Console) -> None:
    """All aliases."""
    answer = console.client.call("GET", "/admin/aliases")
    console.show(answer, alias_table(answer["aliases"]))


@command(alias_command, "set")
@click.argument("alias")
@click.argument("targets", nargs=-1, required=True, metavar="ADAPTER[,VERSION][=PERCENT]...")
def set_alias(console: Console, alias: str, targets: tuple[str, ...]) -> None:
    """Point an alias at an adapter, or split it: set prod legal,3=90 legal,4=10.

    Without a VERSION it follows the adapter's current one.
    """
    body = {"split": [parse_target(text, is_only=len(targets) == 1) for text in targets]}
    entry = console.client.call("PUT", f"/admin/aliases/{name_path(alias)}", json=body)
    console.show(entry, alias_table([entry]))


def parse_target(text: str, is_only: bool) -> Fields:
    """``ADAPTER[,VERSION][=PERCENT]``; the only one may go without its percent."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{text!r} is not ADAPTER[,VERSION][=PERCENT]")
    adapter, version, percent = match.groups()
    if percent is None and not is_only:
        raise click.UsageError(f"{text!r}: of several targets each needs its =PERCENT")
    return {
        "adapter": adapter,
        "version": None if version is None else int(version),
        "percent": 100.0 if percent is None else float(percent),
    }


@command(alias_command, "delete")
@click.argument("alias")
def delete_alias(console: Console, alias: str) -> None:
    """Remove an alias."""
    answer = console.client.call("DELETE", f"/admin/aliases/{name_path(alias)}")
    console.show(answer, f"{alias} is removed")


@command(alias_command, "rollback")
@click.argument("alias")
def roll_back_alias(console: Console, alias: str) -> None:
    """Point an alias where it pointed before."""
    entry = console.client.call("POST", f"/admin/aliases/{name_path(alias)}/rollback")
    console.show(entry, alias_table([entry]))
