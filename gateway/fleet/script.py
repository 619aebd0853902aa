"""Lua that Redis keeps by its SHA."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from .redis_client import Client


class Script:
    """One script; all ``keys`` of a call must share a hash tag, so that Cluster works too."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self, client: Client, keys: Sequence[str], args: Sequence[bytes | str | int | float] = ()
    ) -> Any:
        """Run it by its SHA, by its text where Redis doesn't have it (and then it does).

        To be called within ``RedisLink.run``. Raises what redis-py does.
        """
        try:
            return await _run(client, "EVALSHA", self._sha, keys, args)
        except NoScriptError:
            return await _run(client, "EVAL", self._text, keys, args)


async def _run(
    client: Client,
    command: str,
    script: str,
    keys: Sequence[str],
    args: Sequence[bytes | str | int | float],
) -> Any:
    return await client.execute_command(command, script, len(keys), *keys, *args)
