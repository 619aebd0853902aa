"""The one command line: ``branchline serve``, ``branchline adapter``, ``branchline bench``.

Everything heavy is imported by the command that needs it, so ``--help`` is quick. Errors are
one line on stderr; the exit status is 2 for bad arguments and 1 for a failure.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from . import __version__
from .server.engine_flags import engine_options
from .server.fleet.flags import fleet_options
from .server.output.flags import parser_options

LORA_FLAGS = ("--lora", "--lora-modules")


class LazyCommand(click.Command):
    """A command that lives elsewhere and is imported when it is called."""

    def __init__(self, name: str, module: str, attribute: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._module, self._attribute = module, attribute

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Import the command and hand the arguments to it."""
        try:
            command = getattr(importlib.import_module(self._module, __package__), self._attribute)
        except (ImportError, AttributeError) as error:
            raise click.ClickException(f"{self.name} is not installed here: {error}") from error
        assert isinstance(command, click.Command)
        return command.make_context(info_name, args, parent, **extra)


class ServeCommand(click.Command):
    """``serve``, whose ``--lora`` takes one or several NAME=PATH."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give each NAME=PATH a flag of its own."""
        rest = super().parse_args(ctx, spread_values(args, LORA_FLAGS))
        if ctx.args:  # not shown, as click would: it may be the KEY of '--tenant NAME KEY'
            raise click.UsageError(
                f"{len(ctx.args)} too many words: only MODEL comes without a flag.", ctx
            )
        return rest


def spread_values(args: Sequence[str], flags: Sequence[str]) -> list[str]:
    """``--flag a=1 b=2`` as ``--flag a=1 --flag b=2``; other words stay where they are."""
    spread: list[str] = []
    flag = ""
    for word in args:
        if flag and "=" in word and not word.startswith("-") and spread[-1] != flag:
            spread.append(flag)
        elif word.startswith("-") or (flag and spread[-1] != flag):
            flag = word if word in flags else ""
        spread.append(word)
    return spread


def _load_config(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """``--config``: the file's keys become the defaults of the flags of the same name."""
    if path is not None:
        from .server.config_file import read_defaults

        ctx.default_map = {**(ctx.default_map or {}), **read_defaults(ctx.command, path)}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="branchline")
def cli() -> None:
    """One base model, hundreds of LoRA adapters, one batch."""


@cli.command(cls=ServeCommand, context_settings={"allow_extra_args": True})
@click.argument("model")
@click.option(
    *LORA_FLAGS, "lora", multiple=True, metavar="NAME=PATH", help="An adapter; repeatable."
)
@click.option(
    "--config",
    callback=_load_config,
    is_eager=True,
    expose_value=False,
    metavar="FILE.yaml",
    help="Defaults for these flags, under their names; the command line wins.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--served-model-name",
    multiple=True,
    metavar="NAME",
    help="The base model's name; repeatable, the first one leads.  [default: MODEL]",
)
@engine_options
@click.option(
    "--api-key",
    multiple=True,
    metavar="KEY",
    help="A key that clients must send; repeatable. Also BRANCHLINE_API_KEY.",
)
@click.option(
    "--tenant",
    multiple=True,
    metavar="NAME=KEY",
    help="A tenant's key; repeatable, several a tenant.",
)
@click.option(
    "--tenant-weight",
    multiple=True,
    metavar="NAME=WEIGHT",
    help="A tenant's share against others'; repeatable.  [default: 1]",
)
@fleet_options
@click.option(
    "--admin-key",
    multiple=True,
    metavar="KEY",
    help="A key for /admin; repeatable. Also BRANCHLINE_ADMIN_KEY.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Keeps adapters, versions, pins and aliases over restarts.  [default: not kept]",
)
@click.option(
    "--adapter-root",
    multiple=True,
    metavar="DIR",
    help="A directory that admins may load adapters from; repeatable.",
)
@click.option(
    "--adapter-source",
    multiple=True,
    metavar="PREFIX",
    help="https://host/path, hf:// or hf://org that admins may load from; repeatable.",
)
@click.option(
    "--max-adapter-mb",
    type=click.FloatRange(0, min_open=True),
    default=2048.0,
    show_default=True,
    help="The largest adapter that is fetched or uploaded, in MiB.",
)
@click.option(
    "--adapter-fetch-timeout",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds within which an adapter has to be here.",
)
@click.option(
    "--adapter-versions-kept",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Older versions of each adapter to roll back to.",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's https://host that may call from browsers, or *; repeatable.",
)
@click.option(
    "--allowed-origins", metavar="JSON", help="The same as vLLM has it: '[\"https://host\"]'."
)
@click.option("--chat-template", metavar="FILE", help="Instead of the model's own (Jinja).")
@parser_options
@click.option(
    "--generation-config",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: sampling defaults from the model's generation_config.json, as vLLM does.",
)
@click.option(
    "--max-body-mb",
    type=click.FloatRange(0, min_open=True),
    default=16.0,
    show_default=True,
    help="The largest request body, in MiB.",
)
@click.option(
    "--body-timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds within which a request body has to be here.",
)
@click.option(
    "--client-timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a client may take nothing of its stream.",
)
@click.option(
    "--response-ttl",
    type=click.FloatRange(0, min_open=True),
    default=86400.0,
    show_default=True,
    help="Seconds that responses are kept for previous_response_id.",
)
@click.option(
    "--response-store-mb",
    type=click.FloatRange(0),
    default=64.0,
    show_default=True,
    help="MiB of kept responses: in this server, or a tenant in the fleet's Redis. 0: none.",
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running requests have after SIGTERM.",
)
@click.option(
    "--ready-timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds without an engine step until /ready fails.",
)
@click.option("--restart-engine", is_flag=True, help="Restart an engine that died, and go on.")
@click.option("--otlp-endpoint", metavar="URL", help="Where traces go (needs branchline[tracing]).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="debug adds an access log.",
)
def serve(**options: Any) -> None:
    """Serve MODEL, a directory or a hub id, and its adapters over the OpenAI API."""
    from .server.config import parse_serve_options
    from .server.serve import run

    try:
        config = parse_serve_options(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(run(config))


cli.add_command(
    LazyCommand("gateway", ".gateway.command", "gateway_command", "One door before many replicas.")
)
cli.add_command(
    LazyCommand(
        "up", ".gateway.up.command", "up_command", "Redis, a gateway and replicas, here and now."
    )
)
cli.add_command(
    LazyCommand("tenant", ".gateway.tenants.command", "tenant_command", "Tenants of a gateway.")
)
cli.add_command(
    LazyCommand(
        "bench", ".server.bench.command", "bench_command", "Load a server and say how it took it."
    )
)
cli.add_command(
    LazyCommand(
        "adapter", ".server.adapters.cli", "adapter_command", "Adapters of a running server."
    )
)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr."""
    try:
        status = cli.main(prog_name="branchline", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except click.ClickException as error:
        click.echo(f"branchline: error: {' '.join(error.format_message().split())}", err=True)
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("branchline: interrupted", err=True)
        status = 130
    sys.exit(status)
