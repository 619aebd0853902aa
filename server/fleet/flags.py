"""The flags of ``branchline serve`` that make a server a replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--fleet-secret",
        metavar="SECRET",
        help="Whose bearer may name tenants: the gateway. Also BRANCHLINE_FLEET_SECRET.",
    ),
    click.option(
        "--fleet",
        metavar="URL",
        help="The Redis of the fleet that this server is a replica of; needs --fleet-secret.",
    ),
    click.option(
        "--fleet-name", metavar="NAME", default="default", show_default=True, help="Which fleet."
    ),
    click.option(
        "--replica-id",
        metavar="ID",
        help="This server's name in the fleet.  [default: the advertised host:port]",
    ),
    click.option(
        "--advertise-url",
        metavar="URL",
        help="Where gateways reach this server.  [default: where it listens; of all addresses, "
        "the host's name]",
    ),
)


def fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
