"""``--config file.yaml``: a command's flags, under their own names, as defaults."""

from __future__ import annotations

from collections.abc import Mapping

import click
import yaml

KEY_FLAGS = ("api_key", "tenant", "admin_key")
"""A list of keys that came out empty by mistake must not open the server to everybody."""


def read_defaults(command: click.Command, path: str) -> dict[str, object]:
    """The file's values by parameter name; raises UsageError naming the file and the key."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
    except yaml.YAMLError as error:
        # Without the library's words, which quote the file: it may hold keys.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise click.UsageError(f"--config {path}: is not valid YAML{where}") from None
    if not isinstance(fields, dict):
        raise click.UsageError(f"--config {path}: must be a mapping of flags to values")
    return _as_defaults(command, path, fields)


def _as_defaults(
    command: click.Command, path: str, fields: Mapping[object, object]
) -> dict[str, object]:
    """The file's keys as parameter names, each value in the form that its flag takes."""
    known: dict[str, click.Parameter] = {}
    for parameter in command.params:
        flags = [option.lstrip("-") for option in parameter.opts if option.startswith("--")]
        for name in flags or [parameter.name or ""]:
            known[name.replace("-", "_")] = parameter
    del known["config"]
    defaults: dict[str, object] = {}
    for key, value in fields.items():
        name = str(key).replace("-", "_")
        if name not in known:
            allowed = ", ".join(sorted(name.replace("_", "-") for name in known))
            raise click.UsageError(f"--config {path}: unknown key {key!r}; allowed: {allowed}")
        parameter = known[name]
        defaults[parameter.name or name] = _as_value(f"--config {path}: {key}", parameter, value)
    return defaults


def _as_value(where: str, parameter: click.Parameter, value: object) -> object:
    if parameter.multiple if isinstance(parameter, click.Option) else False:
        if parameter.name in KEY_FLAGS and value in ([], {}):
            raise click.UsageError(f"{where}: is empty; leave it out to have no key")
        return _as_values(where, value, numbers=(parameter.metavar or "").endswith("=WEIGHT"))
    if isinstance(value, dict | list):
        raise click.UsageError(f"{where}: must be a single value")
    if parameter.type is click.STRING and not isinstance(value, str):
        raise click.UsageError(f"{where}: must be a string; quote it")
    if value is None:
        raise click.UsageError(f"{where}: must have a value; leave it out for the default")
    if getattr(parameter, "is_flag", False):
        return _as_switch(where, value)
    # As click reads it on the command line: of the number 1.5, or of true, it would make 1.
    return str(value) if isinstance(value, int | float) else value


def _as_switch(where: str, value: object) -> object:
    """What a flag without a value takes: true or false, or a word that click knows."""
    if isinstance(value, bool | str):
        return value
    raise click.UsageError(f"{where}: must be true or false")


def _as_values(where: str, value: object, numbers: bool) -> list[str]:
    """What a repeatable flag takes; of a mapping, NAME=VALUE for each value of each name.

    Strings only, and where VALUE is one, numbers: an unquoted 0123 is not what it looks like.
    """
    if isinstance(value, dict):
        if empty := [name for name, entries in value.items() if entries == []]:
            raise click.UsageError(f"{where}: {empty[0]!r} has an empty list")
        allowed = (str, int, float) if numbers else (str,)
        pairs = [
            (name, entry)
            for name, entries in value.items()
            for entry in (entries if isinstance(entries, list) else [entries])
        ]
        if all(
            isinstance(name, str) and isinstance(entry, allowed) and not isinstance(entry, bool)
            for name, entry in pairs
        ):
            return [f"{name}={entry}" for name, entry in pairs]
        raise click.UsageError(f"{where}: must map names to strings{' or numbers' * numbers}")
    values = value if isinstance(value, list) else [value]
    texts = [entry for entry in values if isinstance(entry, str)]
    if len(texts) == len(values):
        return texts
    raise click.UsageError(f"{where}: must be a string, or a list of strings")
