from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis_server import redis_server

from branchline.gateway.fleet.connection import RedisDown, RedisLink

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", path.with_suffix(".key"), "-out", path, "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return path


@asynccontextmanager
async def tls_before(port: int, certificate: Path) -> AsyncIterator[int]:
    """The port of something that speaks TLS, and passes on to ``port`` what it hears."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ping(url: str) -> bool:
    link = RedisLink.open(url, timeout=2.0)
    try:
        return bool(await link.run(lambda client: client.execute_command("PING")))
    finally:
        await link.close()


async def test_tls_with_a_certificate_that_is_trusted(certificate: Path) -> None:
    with redis_server() as redis:
        async with tls_before(redis.port, certificate) as port:
            assert await ping(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
            assert await ping(f"rediss://localhost:{port}?ssl_cert_reqs=none")
            with pytest.raises(RedisDown, match="certificate"):
                await ping(f"rediss://localhost:{port}")
