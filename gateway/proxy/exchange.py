"""One exchange with a client: answered whatever happens, watched while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from ..body import ClientLeft
from ..errors import GatewayError
from .client_side import ClientSide, Send
from .guard import ClientGone, Guard, UpstreamLost
from .job import Trail
from .parts import ProxyParts

CLIENT_LEFT_STATUS = 499

logger = logging.getLogger(__name__)


async def exchange(
    proxy: ProxyParts,
    trail: Trail,
    send: Send,
    work: Callable[[Guard, ClientSide], Awaitable[None]],
) -> None:
    """Do ``work``; what it raises becomes the answer, and is told in ``trail``.

    Raises only what a connection has to be cut for: ClientGone, ClientLeft, UpstreamLost.
    """
    guard = Guard()
    client = ClientSide(send, guard, trail, proxy.limits.client_timeout)
    proxy.watchdog.add(guard)
    try:
        await work(guard, client)
    except GatewayError as error:
        await client.error(error)
    except (ClientGone, ClientLeft):
        trail.status, trail.outcome = trail.status or CLIENT_LEFT_STATUS, "client_left"
        raise
    except UpstreamLost:
        trail.outcome = "interrupted"
        raise
    except Exception:
        logger.exception("request %s failed", trail.request_id)
        message = "The gateway failed on this request; its log says why."
        await client.error(GatewayError(500, message, code="internal_error"))
    finally:
        proxy.watchdog.remove(guard)
