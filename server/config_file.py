"""``--config file.yaml``: a command's flags, under their own names, as defaults."""

from __future__ import annotations

from collections.abc import Mapping

import click
import yaml


def read_defaults(command: click.Command, path: str) -> dict[str, object]:
    """The file's values by parameter name; raises UsageError naming the file and the key."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
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
        if isinstance(value, dict):
            return [f"{name}={path}" for name, path in value.items()]
        values = value if isinstance(value, list) else [value]
        if all(isinstance(entry, str) for entry in values):
            return values
        raise click.UsageError(f"{where}: must be a string, or a list of strings")
    if isinstance(value, dict | list):
        raise click.UsageError(f"{where}: must be a single value")
    if isinstance(value, int | float) and not getattr(parameter, "is_flag", False):
        return str(value)  # click would make a whole number of 1.5, and of true
    return value
