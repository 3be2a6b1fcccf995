"""What an agent does for its cluster's membership: lets invited machines in, renews its certificate, and
knows where the store's members are."""

from __future__ import annotations

import asyncio
import ssl

import structlog

from hactl.cluster import node_config
from hactl.cluster.join_server import serve_join, server_context
from hactl.cluster.layout import Layout
from hactl.cluster.upkeep import upkeep
from hactl.errors import HactlError
from hactl.store.etcd import EtcdStore, Tls

_log = structlog.get_logger("hactl.admission")
_AGAIN = 5.0
"""Seconds until the door is tried again after it could not be opened."""


class Admission:
    """``contexts``: TLS contexts of this process that show the node's certificate."""

    def __init__(
        self, store: EtcdStore, contexts: tuple[ssl.SSLContext, ...], layout: Layout | None = None
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._layout = layout or Layout()
        self._problem: HactlError | None = None

    @property
    def problem(self) -> str | None:
        """Why nobody can join by way of this node."""
        return None if self._problem is None else f"machines cannot join here: {self._problem}"

    async def run(self) -> None:
        """Until cancelled."""
        context = await self._until_made()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._door(context))
            group.create_task(
                upkeep(contexts=(context, *self._contexts), changed=lambda _: self._store_moved())
            )

    async def _until_made(self) -> ssl.SSLContext:
        while True:
            try:
                return server_context(self._layout)
            except HactlError as error:
                self._failed(error)
            await asyncio.sleep(_AGAIN)

    async def _door(self, context: ssl.SSLContext) -> None:
        while True:
            try:
                runner = await serve_join(self._store, layout=self._layout, context=context)
            except HactlError as error:
                self._failed(error)
                await asyncio.sleep(_AGAIN)
                continue
            self._problem = None
            try:
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()

    def _failed(self, error: HactlError) -> None:
        if self._problem is None:
            _log.warning("machines cannot join here", error=str(error))
        self._problem = error

    def _store_moved(self) -> None:
        try:
            config = node_config.load(self._layout.node_file)
            c = self._layout.certificates
            self._store.follow(config.etcd, Tls(ca=c.ca, cert=c.certificate, key=c.key))
        except HactlError as error:
            # The old addresses stay in use; the next round finds whatever is there then.
            _log.warning("the store's addresses stay as they were", error=str(error))
