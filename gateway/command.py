"""``branchline gateway``: its flags."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .config import GatewayConfig

POLICIES = ("cost", "round-robin", "least-loaded", "consistent-hash")

_SECONDS = click.FloatRange(0, min_open=True)


Command = Callable[..., None]


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*names, show_default="default" in settings, **settings)


@click.command("gateway", context_settings={"help_option_names": ["-h", "--help"]})
@_option("--redis", metavar="URL", help="The fleet's Redis, where replicas are found.")
@_option("--replica", multiple=True, metavar="URL", help="A replica, without Redis; repeatable.")
@_option("--fleet-name", default="default", metavar="NAME", help="Which fleet of that Redis.")
@_option("--fleet-secret", metavar="SECRET", help="The replicas'. Also BRANCHLINE_FLEET_SECRET.")
@_option("--host", default="127.0.0.1")
@_option("--port", type=click.IntRange(0, 65535), default=8080)
@_option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    help="Processes that share the port, a core each; more than 1 need --redis.",
)
@_option("--policy", type=click.Choice(POLICIES), default="cost", help="How to route.")
@_option(
    "--admin-key",
    multiple=True,
    metavar="KEY",
    help="A key for /admin; repeatable. Also BRANCHLINE_ADMIN_KEY.",
)
@_option("--allow-anonymous", is_flag=True, help="No key: the tenant 'default'.")
@_option("--tenants", metavar="FILE.yaml", help="Tenants and keys that are applied at the start.")
@_option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's https://host that may call from browsers, or *; repeatable.",
)
@_option("--allowed-origins", metavar="JSON", help="The same as a JSON list.")
@_option("--state-dir", metavar="DIR", help="Keeps what Redis holds over its loss.")
@_option("--max-body-mb", type=_SECONDS, default=16.0, help="The largest request body, in MiB.")
@_option("--body-timeout", type=_SECONDS, default=30.0, help="Seconds for a body to be here.")
@_option("--max-streams", type=click.IntRange(1), default=4096, help="Requests at a time.")
@_option(
    "--client-timeout",
    type=_SECONDS,
    default=60.0,
    help="Seconds until a client that takes nothing of its answer is cut off.",
)
@_option("--connect-timeout", type=_SECONDS, default=1.5, help="Seconds to connect to a replica.")
@_option(
    "--first-byte-timeout",
    type=_SECONDS,
    default=5.0,
    help="Seconds until a silent replica is asked whether it has the request.",
)
@_option(
    "--silence-timeout",
    type=_SECONDS,
    default=5.0,
    help="Seconds of silence in a stream until it is resumed elsewhere.",
)
@_option(
    "--resume-timeout",
    type=_SECONDS,
    default=30.0,
    help="Seconds in which a broken stream must be resumed.",
)
@_option("--max-tries", type=click.IntRange(1, 64), default=4, help="Replicas a request may try.")
@_option(
    "--shutdown-timeout",
    type=click.FloatRange(0),
    default=30.0,
    help="Seconds that running requests have after SIGTERM.",
)
@_option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@_option("--access-log/--no-access-log", default=True, help="One JSON line a request on stdout.")
@_option("--otlp-endpoint", metavar="URL", help="Where traces go (needs branchline[tracing]).")
def gateway_command(**options: Any) -> None:
    """One door to many replicas: routing, tenants, limits, failover."""
    from .config import parse_gateway_options

    try:
        config = parse_gateway_options(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(_run(config))


def _run(config: GatewayConfig) -> int:
    if config.workers > 1:
        from .workers.parent import run_workers

        return run_workers(config)
    from .serve import run

    return run(config)
