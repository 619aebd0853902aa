"""Versions made ready to be served from what is kept of them, formatted anew where it must be."""

from __future__ import annotations

import asyncio
import os

from ...engine.adapter_format import AdapterFacts
from ...engine.errors import EngineDeadError, RequestError
from ...lora.errors import AdapterError
from ..catalog import AdapterVersion
from ..errors import ApiError
from .intake import AdapterIntake
from .live_registry import LiveRegistry
from .registry import Registry
from .sources import shown_location
from .text import AdapterText

MAX_PARALLEL = 8


class Revival:
    """Brings versions to the engine; whoever calls holds a claim on them."""

    def __init__(self, live: LiveRegistry, intake: AdapterIntake) -> None:
        self._live = live
        self._intake = intake

    async def make_ready(self, version: AdapterVersion) -> AdapterFacts:
        """Give a version to the engine and read its text; returns what its file holds now.

        Its file is checked first, and where it is gone or was made for another base or dtype it is
        made again from its source. Raises AdapterError, and what the engine does.
        """
        live, digest = self._live, version.digest
        facts = version.facts
        if digest not in live.engine:
            try:
                facts = await self._intake.check(live.state.formatted(digest))
            except AdapterError:
                facts = await self._format_again(version)
            await live.engine.add(digest)
        if version.text_digest is not None and version.text_digest not in live.texts:
            live.texts[version.text_digest] = await self._text(version.text_digest)
        live.failures.pop(digest, None)
        return facts

    async def _text(self, text_digest: str) -> AdapterText:
        directory = self._live.state.text(text_digest)
        if not directory.is_dir():
            raise AdapterError("tokenizer", "its files are gone from the state directory")
        text = await self._intake.read_text(directory)
        if text is None:  # it says what the base says by now
            return AdapterText(text_digest, None, None)
        if text.text_digest != text_digest:
            raise AdapterError("tokenizer", "its files in the state directory have been changed")
        return text

    async def _format_again(self, version: AdapterVersion) -> AdapterFacts:
        state, staged = self._live.state, None
        if version.source.kind == "upload":
            staged = state.upload(version.digest)
            if not staged.is_dir():
                raise AdapterError("source", "it was uploaded, and has to be uploaded again")
        with self._live.workroom() as work:
            prepared = await self._intake.prepare(
                version.source, work, staged=staged, by_operator=True
            )
            assert prepared is not None, "nothing is known to make it needless"
            if prepared.facts.digest != version.digest:
                shown = shown_location(version.source.location)
                raise AdapterError("source", f"{shown} has other bytes by now")
            os.replace(prepared.file, state.formatted(version.digest))
        return prepared.facts


async def restore(live: LiveRegistry, revival: Revival, registry: Registry) -> dict[str, str]:
    """Serve what a registry holds; by name, why its current version can't be had.

    Raises EngineDeadError where the engine does not live through it.
    """
    await asyncio.to_thread(live.state.tidy, registry)
    room = asyncio.Semaphore(MAX_PARALLEL)
    changed: dict[str, AdapterFacts] = {}
    deaths: list[EngineDeadError] = []

    async def bring_back(version: AdapterVersion) -> None:
        async with room:
            try:
                facts = await revival.make_ready(version)
            except EngineDeadError as error:
                deaths.append(error)
            except (AdapterError, ApiError, RequestError, TimeoutError) as error:
                live.failures[version.digest] = str(error) or "the engine has not answered"
            else:
                if facts != version.facts:
                    changed[version.digest] = facts

    distinct = {(v.digest, v.text_digest): v for _, v in registry.all_serving()}
    await asyncio.gather(*map(bring_back, distinct.values()))
    if deaths:
        raise deaths[0]
    for digest, facts in changed.items():
        registry = registry.with_facts(digest, facts)
    live.show(registry)
    return {
        name: live.failures[record.current.digest]
        for name, record in registry.adapters.items()
        if record.current.digest in live.failures
    }
