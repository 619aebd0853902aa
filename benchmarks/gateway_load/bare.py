"""A door that only passes requests on, over the gateway's own libraries: the limit beside it.

    python -m branchline.benchmarks.gateway_load.bare --upstream URL

prints its address as JSON. No keys, limits, routing, metrics, log, retries or time limits: what it
costs is uvicorn's and aiohttp's, and what Python takes to get from one to the other.
"""

from __future__ import annotations

import asyncio

import aiohttp
import click
import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from branchline.gateway.fleet.process import bind, loop_factory

_JSON = (b"content-type", b"application/json")


class BareDoor:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and its answer back when it is whole."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        msgspec.json.decode(body)
        url, headers = self._upstream + scope["path"], {"content-type": "application/json"}
        async with self._opened().post(url, data=body, headers=headers) as response:
            answer = await response.read()
        length = (b"content-length", str(len(answer)).encode())
        status = response.status
        await send({"type": "http.response.start", "status": status, "headers": [_JSON, length]})
        await send({"type": "http.response.body", "body": answer})

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session


async def _serve(upstream: str) -> None:
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            BareDoor(upstream),
            loop="none",
            http="httptools",
            lifespan="off",
            log_level="warning",
            access_log=False,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(msgspec.json.encode(url).decode(), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


@click.command()
@click.option("--upstream", required=True)
def main(upstream: str) -> None:
    """Serve until killed."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(upstream))


if __name__ == "__main__":
    main()
