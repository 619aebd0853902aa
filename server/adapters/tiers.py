"""Where adapters are kept: pins by name, loads and evictions at an admin's word."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ...engine.adapter_types import PinTier
from ...engine.errors import EngineError, RequestError
from ..catalog import AdapterVersion
from ..errors import ApiError
from .live_registry import Committed, LiveRegistry
from .names import not_there
from .registry import AdapterRecord, Registry


class AdapterTiers:
    """A pin belongs to a name: each version that becomes current has it.

    ``errors`` is the last thing that failed under each name.
    """

    def __init__(self, live: LiveRegistry) -> None:
        self._live = live
        self.errors: dict[str, str] = {}

    async def pin(self, name: str, tier: PinTier | None) -> None:
        """Pin a name's version, and those that follow it; None ends that."""
        self.version_of(name)
        await asyncio.shield(self._live.background(self._pin(name, tier)))

    async def _pin(self, name: str, tier: PinTier | None) -> None:
        live = self._live

        def change(registry: Registry) -> Registry:
            record = _record(registry, name)
            if record.pin == tier:
                return registry
            return registry.with_adapter(name, replace(record, pin=tier))

        digest = self.version_of(name).digest
        with _refusals():
            await live.engine.pin(digest, change(live.registry).pin_of(digest))
        try:
            committed = await live.commit(change)
        except ApiError:
            await self.follow(name, digest)
            raise
        await self.settle(name, committed)

    async def pin_new(self, digest: str, tier: PinTier) -> None:
        """Pin a version before it is anyone's; raises ApiError 409 where it can't be."""
        held = self._live.registry.pin_of(digest)
        with _refusals():
            await self._live.engine.pin(digest, "device" if held == "device" else tier)

    async def settle(self, name: str, committed: Committed) -> None:
        """After a change of ``name``: have its versions pinned as the registry now says."""
        self.errors.pop(name, None)
        if name in committed.before.adapters:
            await self.follow(name, committed.before.adapters[name].current.digest)
        await self.hold(name)

    async def hold(self, name: str) -> None:
        """Pin what is current under a name, if the name is pinned."""
        if name in self._live.registry.adapters:
            await self.follow(name, self._live.registry.adapters[name].current.digest)

    async def follow(self, name: str, digest: str) -> None:
        """The pin that names give a digest; a failure is the name's last error."""
        try:
            await self._live.engine.pin(digest, self._live.registry.pin_of(digest))
        except (EngineError, TimeoutError) as error:
            self.errors[name] = f"its pin can't be held: {error or 'the engine has not answered'}"

    async def load(self, name: str, tier: PinTier) -> None:
        """Bring the current version to a tier."""
        with _refusals():
            await self._live.engine.load(self.version_of(name).digest, tier)

    async def evict(self, name: str, tier: PinTier) -> None:
        """Take the current version off a tier."""
        with _refusals():
            await self._live.engine.evict(self.version_of(name).digest, tier)

    def version_of(self, name: str) -> AdapterVersion:
        """The current version, which answers; raises ApiError 404 without, 409 if it can't."""
        version = _record(self._live.registry, name).current
        if not self._live.can_serve(version):
            reason = self._live.failures.get(version.digest, "the engine does not have it")
            raise ApiError(
                f"{name!r} can't be served: {reason}.",
                status=409,
                param="name",
                code="adapter_not_available",
            )
        return version


def _record(registry: Registry, name: str) -> AdapterRecord:
    record = registry.adapters.get(name)
    if record is None:
        raise not_there(name, "adapter")
    return record


@contextmanager
def _refusals() -> Iterator[None]:
    """The engine refuses because of how things stand, not because of what was sent: 409."""
    try:
        yield
    except RequestError as error:
        raise ApiError(
            f"The engine refuses: {error.message}.", status=409, param="name", code="adapter_busy"
        ) from error
