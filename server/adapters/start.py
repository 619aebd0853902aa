"""Adapters at start: those of the state directory first, then those of the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ...lora.errors import BranchlineError
from ..catalog import Catalog
from ..config import AdapterSpec
from .manager import AdapterManager
from .names import check_new_name, taken
from .registry import Registry
from .sources import AdapterSource, operator_source

NamedSource = tuple[str, AdapterSource]

MAX_SAID = 20


class AdapterStartError(BranchlineError):
    """An adapter that keeps the server from starting."""


async def start_adapters(
    manager: AdapterManager,
    registry: Registry,
    named: Sequence[NamedSource],
    say: Callable[[str], None],
) -> None:
    """Have everything served that was, and what the command line names; raises AdapterStartError.

    What can't be had back stays as a name that fails; what the operator names must work.
    """
    if registry.adapters:
        say(f"bringing back adapters: {len(registry.adapters)}")
    failures = await manager.restore(registry)
    for name, reason in list(failures.items())[:MAX_SAID]:
        say(f"adapter {name} can't be had back: {reason}")
    if len(failures) > MAX_SAID:
        say(f"and {len(failures) - MAX_SAID} more")
    await _put_all(manager, named, say)


async def _put_all(
    manager: AdapterManager, named: Sequence[NamedSource], say: Callable[[str], None]
) -> None:
    """In parallel, but each has its place among the names as it was given."""
    turn: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    turn.set_result(None)
    tasks: list[asyncio.Task[object]] = []
    for name, source in named:
        tasks.append(asyncio.create_task(_put(manager, name, source, turn)))
        turn = tasks[-1]
    try:
        for index, task in enumerate(tasks):
            if index < MAX_SAID:
                say(f"loading adapter {named[index][1].location}")
            elif index % 100 == 0:
                say(f"loading adapters, {index} of {len(tasks)} are there")
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _put(
    manager: AdapterManager, name: str, source: AdapterSource, turn: asyncio.Future[object]
) -> object:
    try:
        return await manager.put_by_operator(name, source, turn)
    except AdapterStartError:
        raise
    except BranchlineError as error:
        raise AdapterStartError(f"adapter {name}: {error}") from error


def named_sources(specs: Sequence[AdapterSpec], catalog: Catalog) -> list[NamedSource]:
    """Where the adapters of the command line lie; raises AdapterStartError."""
    sources: dict[str, AdapterSource] = {}
    for spec in specs:
        try:
            check_new_name(spec.name, catalog)
            if spec.name in sources:
                raise taken(spec.name, "another adapter")
            sources[spec.name] = operator_source(spec.path)
        except BranchlineError as error:
            raise AdapterStartError(f"adapter {spec.name}: {error}") from error
    return list(sources.items())


def check_names(registry: Registry, catalog: Catalog) -> None:
    """Raise AdapterStartError where the base model would hide an adapter or an alias."""
    for name in (*registry.adapters, *registry.aliases):
        if name in catalog.base_names:
            raise AdapterStartError(
                f"the state directory has {name!r}, which is the base model's name too; give the "
                "base another with --served-model-name"
            )
