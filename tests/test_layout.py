"""The house's rules that a machine can check: floors, cycles, sizes, links, no torch above."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("server", "engine", "lora", "kernels", "gateway")
ROOT_MODULES = ("__init__", "__main__", "cli")

# What each floor may import from the others: folders, or single modules of a folder.
FLOORS = {
    "__init__": {"server", "engine"},
    "__main__": {"cli"},
    "cli": {"server", "gateway"},
    "server": {"engine", "lora", "gateway.fleet", "gateway.prefix_keys"},
    "engine": {"lora", "kernels.ops"},
    "lora": {"kernels.ops"},
    "kernels": set(),
    "gateway": set(),
}
TORCH_FREE = (
    *("engine.types", "engine.config", "engine.errors", "engine.blocks"),
    *("engine.cache_types", "engine.prefix_key", "engine.radix_tree"),
    *("engine.eviction", "engine.host_blocks", "engine.cached_blocks"),
    *("engine.prefix_cache", "engine.host_tier", "engine.restore_policy"),
    *("engine.block_keys", "engine.tree_events", "engine.cache_check"),
    *("engine.cache_report", "engine.cache_use", "engine.pins", "engine.intake"),
    *(
        "engine.fence",
        "engine.tally",
        "engine.seats",
        "engine.admission",
        "engine.adapter_wait",
        "engine.shared_prefill",
    ),
    *("engine.fair_queue", "engine.tenants", "engine.tenant_line", "engine.line_walk"),
    *("engine.retry_after", "engine.finish", "engine.limits", "engine.scheduler"),
    *("engine.pipeline", "engine.plan", "engine.policy", "engine.request"),
    *("engine.client", "engine.messages", "engine.models.config", "lora.adapter"),
    *("lora.activation", "lora.traits", "lora.slots", "lora.errors", "lora.shapes"),
)
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_KERNEL_FUNCTION_LINES = 90


def source_files() -> list[Path]:
    """Every module of the package."""
    in_folders = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [ROOT / f"{name}.py" for name in ROOT_MODULES] + in_folders


def all_files() -> list[Path]:
    """Every Python file of the repository that we wrote."""
    beside = [ROOT / folder for folder in ("tests", "benchmarks", "examples")]
    return source_files() + [path for folder in beside for path in sorted(folder.rglob("*.py"))]


def module_name(path: Path) -> str:
    """``engine/models/config.py`` -> ``engine.models.config``; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in source_files()}


def imports_of(name: str) -> Iterator[str]:
    """The package's own modules that module ``name`` imports, wherever in the file."""
    path = MODULES[name]
    is_package = path.name == "__init__.py"
    package = [] if name in ROOT_MODULES else name.split(".")[: None if is_package else -1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from _targets(node, package)
        elif isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
            yield from (n.removeprefix("branchline.") for n in absolute if "branchline." in n)


def _targets(node: ast.ImportFrom, package: list[str]) -> Iterator[str]:
    if node.level == 0:
        first, *base = (node.module or "").split(".")
        if first != "branchline":
            return
    else:
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
    source = ".".join(part for part in base if part)
    for alias in node.names:
        inner = f"{source}.{alias.name}".strip(".")
        target = inner if inner in MODULES else source
        if target:
            yield target


def is_allowed(target: str, allowed: set[str]) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_only_from_lower_floors(name: str) -> None:
    floor = name.split(".")[0]
    above = {
        target
        for target in imports_of(name)
        if target.split(".")[0] != floor and not is_allowed(target, FLOORS[floor])
    }
    assert not above, f"{name} may not import {sorted(above)}; allowed: {sorted(FLOORS[floor])}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_cycles_inside_a_folder(folder: str) -> None:
    inside = [name for name in MODULES if name.split(".")[0] == folder]
    graph = {name: {t for t in imports_of(name) if t in inside and t != name} for name in inside}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def torch_free_modules() -> list[str]:
    return [*TORCH_FREE, *(name for name in MODULES if name.split(".")[0] == "gateway")]


def test_the_control_plane_names_no_torch() -> None:
    missing = [name for name in torch_free_modules() if name not in MODULES]
    assert not missing
    todo, seen = torch_free_modules(), set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(target for target in imports_of(name) if target in MODULES)
    found = {name: outside_imports(MODULES[name]) & {"torch", "triton"} for name in seen}
    assert not {name: names for name, names in found.items() if names}


def outside_imports(path: Path) -> set[str]:
    """First names of everything a file imports absolutely."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    plain = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0]
    return plain | {(n.module or "").split(".")[0] for n in froms}


def test_the_control_plane_imports_with_torch_blocked() -> None:
    block = "import importlib, sys\nsys.modules['torch'] = sys.modules['triton'] = None\n"
    names = [f"branchline.{name}" for name in torch_free_modules()]
    code = block + f"for name in {names!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", all_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_bare_import_of_our_folders(path: Path) -> None:
    assert not outside_imports(path) & {*FOLDERS, "cli"}


def test_package_inits_hold_only_their_docstring() -> None:
    for path in (p for p in source_files() if p.name == "__init__.py" and p.parent != ROOT):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_other_module_at_the_root() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOT_MODULES)


@pytest.mark.parametrize("path", all_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_a_screen(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    in_kernels = ROOT / "kernels" in path.parents
    limit = MAX_KERNEL_FUNCTION_LINES if in_kernels else MAX_FUNCTION_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


def test_every_package_folder_is_listed_for_the_wheel() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    held = {f"branchline.{module_name(p)}" for p in source_files() if p.name == "__init__.py"}
    assert set(listed) == (held - {"branchline.__init__"}) | {"branchline"}
    with_modules = {p.parent for p in source_files() if p.parent != ROOT}
    assert all((folder / "__init__.py").exists() for folder in with_modules)


def test_type_checkers_see_the_same_house() -> None:
    """`.types/branchline` links to the root's rooms, without a cycle."""
    links = ROOT / ".types" / "branchline"
    expected = {*FOLDERS, "__init__.py", "cli.py", "py.typed"}
    assert {path.name for path in links.iterdir()} == expected
    for name in expected:
        link = links / name
        assert link.is_symlink(), name
        assert str(link.readlink()) == f"../../{name}"
        assert link.resolve() == ROOT / name
