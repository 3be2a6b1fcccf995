"""The agent's own socket: HTTP and JSON for the command line and the resource agents, for root only."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from aiohttp import web

from hactl.agents.agent import Agent
from hactl.agents.document import cluster_document, node_document, plan_document
from hactl.agents.errors_http import Handler, as_json, body_of
from hactl.agents.fence_peer import handler
from hactl.agents.fencing import fence
from hactl.agents.metrics import Metrics
from hactl.agents.ocf import Ocf
from hactl.agents.pr_document import clear_reservations
from hactl.errors import Failed, HactlError, Refused, Unknown

DEFAULT_SOCKET = Path("/run/hactl/agent.sock")

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


class Api:
    """Orders and questions to one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._metrics = Metrics()
        self._ocf = Ocf(agent)

    def app(self, *, allowed: frozenset[int] = frozenset({0})) -> web.Application:
        """The application; ``allowed`` are the user ids that may ask anything."""
        app = web.Application(middlewares=[as_json, _only(allowed)], client_max_size=64 << 10)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/cluster", self._cluster)
        app.router.add_get("/v1/plan", self._plan)
        app.router.add_post("/v1/resources/{resource}/promote", self._promote)
        app.router.add_post("/v1/resources/{resource}/demote", self._demote)
        app.router.add_post("/v1/resources/{resource}/switchover", self._switchover)
        app.router.add_post("/v1/resources/{resource}/reservations/clear", self._clear)
        app.router.add_post("/v1/nodes/{node}/fence", self._fence)
        app.router.add_post("/v1/resources/{resource}/fence-peer", handler(self._agent.fencing))
        app.router.add_post("/v1/ocf/{resource}/{action}", self._ocf_resource)
        app.router.add_post("/v1/ocf-agent/{action}", self._ocf_agent)
        app.router.add_get("/metrics", self._metrics_page)
        return app

    async def status(self) -> dict[str, Any]:
        """The status document of this node, observed now."""
        return await node_document(self._agent)

    async def cluster(self) -> dict[str, Any]:
        """The status documents of all nodes, as far as their agents were reached."""
        return await cluster_document(self._agent)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self.status())

    async def _cluster(self, _: web.Request) -> web.Response:
        return web.json_response(await self.cluster())

    async def _plan(self, _: web.Request) -> web.Response:
        return web.json_response(await plan_document(self._agent))

    async def _promote(self, request: web.Request) -> web.Response:
        return await self._passed_on("promote", request)

    async def _demote(self, request: web.Request) -> web.Response:
        return await self._passed_on("demote", request)

    async def _passed_on(self, order: str, request: web.Request) -> web.Response:
        resource, node = request.match_info["resource"], request.query.get("node")
        return await self._order(order, self._agent.order(order, resource, node))

    async def _switchover(self, request: web.Request) -> web.Response:
        (to,) = await body_of(request, "to")
        return await self._order("switchover", self._agent.switchover(request.match_info["resource"], to))

    async def _clear(self, request: web.Request) -> web.Response:
        volume, by = await body_of(request, "volume", "by")
        work = clear_reservations(self._agent, request.match_info["resource"], volume, by)
        return await self._order("clear reservations", work)

    async def _fence(self, request: web.Request) -> web.Response:
        return await self._order("fence", fence(self._agent, request.match_info["node"]))

    async def _ocf_resource(self, request: web.Request) -> web.Response:
        resource, action = request.match_info["resource"], request.match_info["action"]
        answer = await self._ocf.resource(resource, action, await _form(request))
        return web.Response(text=answer.text())

    async def _ocf_agent(self, request: web.Request) -> web.Response:
        answer = await self._ocf.agent(request.match_info["action"], await _form(request))
        return web.Response(text=answer.text())

    async def _order(self, name: str, work: Awaitable[dict[str, Any] | None]) -> web.Response:
        began = time.monotonic()
        try:
            told = await work
        except HactlError as error:
            kinds = {Refused: "refused", Failed: "failed", Unknown: "unknown"}
            outcome = next((word for kind, word in kinds.items() if isinstance(error, kind)), "failed")
            self._metrics.orders.labels(name, outcome).inc()
            raise
        seconds = time.monotonic() - began
        self._metrics.orders.labels(name, "done").inc()
        self._metrics.seconds.labels(name).observe(seconds)
        return web.json_response({"done": name, "seconds": round(seconds, 3), **(told or {})})

    async def _metrics_page(self, _: web.Request) -> web.Response:
        text = self._metrics.render(await self.status())
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _form(request: web.Request) -> dict[str, str]:
    """The fields of a form."""
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _only(allowed: frozenset[int]) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        user = peer_user(request)
        if user not in allowed:
            raise Refused(
                "not-root", f"user {user} may not talk to the agent", "run hactl as root, or with sudo"
            )
        return await handler(request)

    return check


def peer_user(request: web.Request) -> int | None:
    """User id of the process at the other end of a Unix socket (SO_PEERCRED, unix(7)); None if it is
    another kind."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    size = _CREDENTIALS.size
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


async def listen(app: web.Application, path: Path) -> web.AppRunner:
    """Serve ``app`` on a Unix socket that only its owner can reach: folder 0700, socket 0600."""
    _prepare(path)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    os.chmod(path, 0o600)  # noqa: PTH101 - nothing here waits for a disk
    return runner


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    # Left by an agent that was killed. Two agents at once are kept apart by systemd, not by this file.
    path.unlink(missing_ok=True)
