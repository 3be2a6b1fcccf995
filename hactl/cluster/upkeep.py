"""What a running node does for its membership now and then: its certificate, and where the store is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import structlog

from hactl.cluster import pki
from hactl.cluster.kit import Kit, real
from hactl.cluster.membership import refresh_endpoints
from hactl.errors import HactlError

_log = structlog.get_logger("hactl.upkeep")
EVERY = 60.0


async def upkeep(
    *,
    contexts: tuple[ssl.SSLContext, ...] = (),
    changed: Callable[[str], None] = lambda _: None,
    every: float = EVERY,
    kit: Kit | None = None,
) -> None:
    """Run until cancelled: renew this node's certificate when it is due, and keep in node.yaml where the
    members of the store are.

    ``contexts`` show the new certificate from then on. ``changed`` is called with ``certificate`` or
    ``endpoints``: a client of the store made before has the old ones, and is to be made anew. Nothing is
    raised; what cannot be done now is logged and tried again.
    """
    use = kit or real()
    while True:
        await once(use, contexts, changed)
        await asyncio.sleep(every)


async def once(kit: Kit, contexts: tuple[ssl.SSLContext, ...], changed: Callable[[str], None]) -> None:
    """One round of :func:`upkeep`."""
    try:
        if pki.renew(kit.layout, kit.now(), contexts):
            _log.info("certificate renewed")
            changed("certificate")
    except (HactlError, OSError, ssl.SSLError) as error:
        _log.warning("certificate not renewed", error=str(error))
    try:
        if await refresh_endpoints(kit):
            _log.info("the store's members have changed")
            changed("endpoints")
    except (HactlError, OSError) as error:
        _log.info("the store's members are not known", error=str(error))
