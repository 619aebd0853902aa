"""The flags of ``branchline serve`` that say how answers are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .families import REASONING_PARSERS, TOOL_PARSERS

_OPTIONS = (
    click.option(
        "--tool-call-parser",
        type=click.Choice(TOOL_PARSERS),
        default="auto",
        show_default=True,
        help="How answers write tool calls; auto: as each model's chat template has them.",
    ),
    click.option(
        "--reasoning-parser",
        type=click.Choice(REASONING_PARSERS),
        default="auto",
        show_default=True,
        help="How answers mark their reasoning; auto: as each model's chat template has it.",
    ),
)


def parser_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
