"""What the documents list is what there is: parameters, flags, links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest

from branchline.cli import cli
from branchline.server.config import Limits
from branchline.server.openai import ACCEPTED, NEUTRAL, ChatRequest, CompletionRequest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def named_in(path: str, heading: str) -> set[str]:
    """Every `name` in one section of a document."""
    section = (ROOT / path).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z_]+)`", section))


def test_the_api_document_lists_every_parameter() -> None:
    honoured = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    listed = named_in("docs/api.md", "Parameters")
    assert {*honoured, *ACCEPTED, *NEUTRAL} <= listed


def test_the_readme_lists_every_flag_and_no_other() -> None:
    parameters = cli.commands["serve"].params
    options = [option for p in parameters for option in (*p.opts, *p.secondary_opts)]
    flags = {option for option in options if option.startswith("--")}
    section = (ROOT / "README.md").read_text().split("## Flags of")[1].split("\n## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == flags


def test_the_gateways_document_lists_every_flag_and_no_other() -> None:
    from branchline.gateway.command import gateway_command

    options = [o for p in gateway_command.params for o in (*p.opts, *p.secondary_opts)]
    flags = {option for option in options if option.startswith("--")} - {"--help"}
    section = (ROOT / "docs/gateway.md").read_text().split("## Flags of")[1].split("\n## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == flags


def test_the_readme_has_the_flags_defaults() -> None:
    section = (ROOT / "README.md").read_text().split("## Flags of")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", section, re.MULTILINE)
    listed = {
        flag: default
        for flags, defaults in rows
        for flag, default in zip(
            re.findall(r"--[a-z-]+", flags), defaults.split(", "), strict=False
        )
    }
    options = [p for p in cli.commands["serve"].params if isinstance(p, click.Option)]
    defaults = {o.opts[0]: o.default for o in options if isinstance(o.default, str | int | float)}
    for flag, default in defaults.items():
        said = f"{default:g}" if isinstance(default, int | float) else default
        if isinstance(default, bool):
            said = "on" if default else "off"
        assert listed.get(flag, said) == said, flag
    assert len(listed) > 20


def test_the_api_document_lists_every_limit_and_its_number() -> None:
    section = (ROOT / "docs/api.md").read_text().split("### Limits\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (`[a-z_`, ]+) \| ([0-9, ]+) \|", section, re.MULTILINE)
    listed = {
        name: int(number.replace(",", ""))
        for names, numbers in rows
        for name, number in zip(names.split(", "), numbers.split(", "), strict=True)
    }
    listed = {name.strip("`"): number for name, number in listed.items()}
    assert listed == {field.name: field.default for field in dataclasses.fields(Limits)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target
