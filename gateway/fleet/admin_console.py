"""What every command of an admin has: the server, the key for it, and how its answer is shown."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from .admin_client import AdminClient, Fields

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Console:
    """The server, and how its answers are shown."""

    client: AdminClient
    as_json: bool

    def show(self, answer: Fields, text: str) -> None:
        """The answer as JSON where asked, else ``text``."""
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False) if self.as_json else text)


def command(
    group: click.Group, name: str, default_url: str = DEFAULT_URL
) -> Callable[[Callable[..., None]], click.Command]:
    """A command of the group with the options that all have; it is called with a Console first."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.option("--url", help=f"The server.  [default: BRANCHLINE_URL, else {default_url}]")
        @click.option("--admin-key", metavar="KEY", help="Or BRANCHLINE_ADMIN_KEY.")
        @click.option(
            "--timeout",
            type=click.FloatRange(1),
            default=600.0,
            show_default=True,
            help="Seconds that the server may be silent.",
        )
        @click.option("--json", "as_json", is_flag=True, help="Print the server's JSON.")
        @functools.wraps(function)
        def call(
            url: str | None, admin_key: str | None, timeout: float, as_json: bool, **given: Any
        ) -> None:
            client = AdminClient(url or _url(default_url), admin_key or _key(), timeout)
            function(Console(client, as_json), **given)

        return group.command(name)(call)

    return decorate


def _url(default: str) -> str:
    return os.environ.get("BRANCHLINE_URL") or default


def _key() -> str | None:
    """The first key of the variable that the server may share; it takes a list."""
    return os.environ.get("BRANCHLINE_ADMIN_KEY", "").split(",")[0].strip() or None
