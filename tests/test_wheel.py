"""The wheel holds every source file: an editable install would hide a forgotten sub-package."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("server", "engine", "lora", "kernels", "gateway")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of a command that has to succeed."""
    env = os.environ | {"PYTHONSAFEPATH": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files git knows or would take, so that no build output gets in or stays."""
    copy = tmp_path_factory.mktemp("source")
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file() and not name.startswith((".types/", "examples/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, source)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site_packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel lies once installed in a clean environment, without what it needs."""
    environment = tmp_path_factory.mktemp("venv")
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", purelib).strip())


def package_files(root: Path) -> set[str]:
    """Python sources and package data of the package at ``root``, relative to it."""
    held = {path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()}
    held |= {path for path in root.iterdir() if path.suffix == ".py" or path.name == "py.typed"}
    kept = {path for path in held if "__pycache__" not in path.parts}
    return {str(path.relative_to(root)) for path in kept}


def test_wheel_holds_exactly_the_source_folders(source: Path, site_packages: Path) -> None:
    installed = {
        str(path.relative_to(site_packages / "branchline"))
        for path in (site_packages / "branchline").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert installed == package_files(source)


def test_wheel_carries_the_licence_and_the_command(site_packages: Path) -> None:
    (info,) = site_packages.glob("branchline-*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text().strip().startswith("Apache License")
    assert "branchline = branchline.cli:main" in (info / "entry_points.txt").read_text()


def test_installed_package_imports_without_its_dependencies(site_packages: Path) -> None:
    python = site_packages.parents[2] / "bin" / "python"
    code = "import branchline; print(branchline.__version__, branchline.__file__)"
    version, file = run(python, "-c", code, cwd=site_packages.parent).split()
    assert version.count(".") == 2
    assert Path(file).is_relative_to(site_packages)


# What a gateway has no use for, and what would make its image large.
HEAVY = {"torch", "triton", "transformers", "tokenizers", "numpy", "fastapi", "pydantic", "pyzmq"}


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the wheel was installed for a gateway alone."""
    environment = tmp_path_factory.mktemp("light")
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pinned = ("-c", ROOT / "constraints.txt", f"{wheel}[gateway]")
    run(python, "-m", "pip", "install", "--quiet", *pinned)
    return python


def test_a_gateway_is_installed_without_torch(light: Path) -> None:
    listed = run(light, "-m", "pip", "list", "--format=freeze").lower().split()
    assert not HEAVY & {line.partition("==")[0] for line in listed}


@pytest.mark.parametrize("command", ["gateway", "up", "tenant", "adapter"])
def test_a_light_install_has_the_commands_of_a_fleet(light: Path, command: str) -> None:
    shown = run(light.parent / "branchline", command, "--help", cwd=light.parent)
    assert shown.startswith("Usage: branchline")


def test_a_light_install_imports_all_of_the_gateway(light: Path) -> None:
    code = (
        "import importlib, pkgutil, branchline.gateway as g\n"
        "for m in pkgutil.walk_packages(g.__path__, 'branchline.gateway.'):\n"
        "    importlib.import_module(m.name)\n"
    )
    run(light, "-c", code, cwd=light.parent)
