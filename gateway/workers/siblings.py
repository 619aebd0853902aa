"""How workers read each other's metrics: a Unix socket each, in a directory of only this user."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

TELL_SECONDS = 1.0
"""How long a worker has to tell its metrics."""

_END = b"# EOF\n"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Siblings:
    """The workers of a gateway, as number ``number`` of them sees the others."""

    directory: Path
    number: int
    num_workers: int

    @asynccontextmanager
    async def answering(self, render: Callable[[], bytes]) -> AsyncIterator[None]:
        """Tell the others what this worker has counted, whenever they ask."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(render() + _END)
                async with asyncio.timeout(TELL_SECONDS):
                    await writer.drain()
            except (OSError, TimeoutError) as error:
                logger.warning("another worker did not read the metrics: %s", error)
                writer.transport.abort()
            finally:
                writer.close()

        path = self._path(self.number)
        path.unlink(missing_ok=True)  # of a worker that was killed
        async with await asyncio.start_unix_server(answer, path):
            yield

    async def collect(self, own: bytes) -> dict[int, bytes]:
        """What each worker has counted, by its number; without those that don't say it in time."""
        others = [number for number in range(self.num_workers) if number != self.number]
        texts = await asyncio.gather(*map(self._ask, others))
        told = {number: text for number, text in zip(others, texts, strict=True) if text}
        return {**told, self.number: own}

    async def _ask(self, number: int) -> bytes | None:
        """What that worker has counted; None when it is not there, hangs or breaks off."""
        try:
            async with asyncio.timeout(TELL_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    text = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return text.removesuffix(_END) if text.endswith(_END) else None

    def _path(self, number: int) -> Path:
        return self.directory / f"{number}.sock"
