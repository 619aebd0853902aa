"""``branchline up MODEL``: the whole house on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from ..fleet.process import stop_signals
from .plan import UpConfig
from .redis_binary import UpError
from .runner import bring_up

# What `up` decides itself for each replica.
_OURS = ("--host", "--port", "--fleet", "--fleet-secret", "--replica-id", "--state-dir", "--lora")


@click.command("up", context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("serve_flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--replicas", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--lora", "lora", multiple=True, metavar="NAME=PATH", help="An adapter; repeatable.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Of the gateway.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--redis", metavar="URL", help="One that runs.  [default: started here]")
@click.option("--tenants", metavar="FILE.yaml", help="Tenants; without it nobody needs a key.")
@click.option("--admin-key", multiple=True, metavar="KEY", help="Also BRANCHLINE_ADMIN_KEY.")
@click.option("--state-dir", metavar="DIR", help="Keeps adapters and tenants over restarts.")
@click.option(
    "--cuda-devices", metavar="0,1,…", help="GPUs for the replicas, in turn.  [default: as found]"
)
@click.option(
    "--gateway-flag", multiple=True, metavar="FLAG", help="A further flag of the gateway."
)
def up_command(**options: Any) -> None:
    """Start Redis, a gateway and replicas of MODEL here; Ctrl-C ends them in order.

    Flags that are not listed here go to every replica, as 'branchline serve' takes them.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="branchline-up-"))
        config = parse_options(options, Path(directory))
        try:
            sys.exit(asyncio.run(_run(config)))
        except UpError as error:
            raise click.ClickException(str(error)) from error


async def _run(config: UpConfig) -> int:
    with stop_signals() as stop:
        return await bring_up(config, lambda line: print(line, flush=True), stop)


def parse_options(options: dict[str, Any], directory: Path) -> UpConfig:
    """The command line as a config; raises UsageError that names the flag."""
    serve_flags = tuple(options["serve_flags"])
    for word in serve_flags:
        if word.partition("=")[0] in _OURS:
            raise click.UsageError(f"{word.partition('=')[0]}: goes before MODEL's own flags")
    adapters = tuple(_adapter(text) for text in options["lora"])
    keys = (*options["admin_key"], *_keys_of_environment())
    if adapters and not keys and (options["tenants"] or options["host"] != "127.0.0.1"):
        keys = (secrets.token_urlsafe(32),)  # for ourselves alone: adapters need an admin
    return UpConfig(
        model=options["model"],
        directory=directory,
        num_replicas=options["replicas"],
        adapters=adapters,
        host=options["host"],
        port=options["port"],
        redis_url=options["redis"],
        tenants=options["tenants"],
        state_dir=options["state_dir"],
        admin_keys=keys,
        cuda_devices=tuple(filter(None, (options["cuda_devices"] or "").split(","))),
        serve_flags=serve_flags,
        gateway_flags=tuple(options["gateway_flag"]),
    )


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (equals and name.strip() and path.strip()):
        raise click.UsageError(f"--lora: {text!r} is not NAME=PATH")
    return name.strip(), path.strip()


def _keys_of_environment() -> list[str]:
    given = os.environ.get("BRANCHLINE_ADMIN_KEY", "").split(",")
    return [key.strip() for key in given if key.strip()]
