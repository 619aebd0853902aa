"""What a gateway says on stdout when it comes and goes, and where its log goes."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

from .access_log import write_stdout
from .config import GatewayConfig

SAY_SECONDS = 0.5


def say(text: str) -> None:
    """One line on stdout; where nobody reads it, nobody waits for that."""
    line = threading.Thread(target=_write, args=(f"branchline: {text}\n",), daemon=True)
    line.start()
    line.join(SAY_SECONDS)


def announce(config: GatewayConfig, url: str) -> None:
    """That it serves, and what it goes without."""
    say(f"serving on {url}")
    if config.redis is None:
        say(
            f"{len(config.replicas)} static replicas and no Redis: limits, tenants and adapters "
            "are this gateway's own, not shared with others"
        )
    if not config.admin_keys and not config.keyless_admin:
        say("no --admin-key: the admin API is off")


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure_logging(level: str, name: str = "gateway") -> None:
    """To stderr, under the process' name."""
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s"
    )
    for noisy in ("asyncio", "httpx", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        write_stdout(text)
