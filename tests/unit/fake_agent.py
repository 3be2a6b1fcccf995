"""An agent for tests of the command line: a real HTTP server on a Unix socket with a small cluster inside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web


class FakeAgent:
    """Node n1 of two. It refuses as the real one does, and ``trouble`` makes it misbehave:

    ``hang``: carry out orders and never answer; ``drop``: carry them out and close the connection;
    ``garbage``: answer with something else than JSON; ``mute``: HTTP 500 without a reason.
    """

    def __init__(self) -> None:
        self.roles = {"r0": "standby", "r1": "active"}
        self.active: dict[str, str | None] = {"r0": None, "r1": "n1"}
        self.up_to_date = True
        self.pacemaker: str | None = None
        """Where Pacemaker, being in charge, promotes what is ready."""
        self.resync: float | None = None
        self.reason: str | None = None
        self.peer_reachable = True
        self.trouble = ""
        self.schema = 1
        self.failover: dict[str, Any] | None = None
        """What the cluster's document says of it; None: an agent of before, that says nothing."""
        self.orders: list[str] = []
        self.late: list[str] = []
        """Resources that come up one by one, with each look at the cluster."""
        self.not_ready: list[str] = []
        """Why promotion is refused, once each."""
        self.not_ready_code = "not-ready"
        self.ended = asyncio.Event()
        """Lets go of what hangs, at the end."""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._misbehave])
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/plan", self._plan)
        app.router.add_get("/v1/cluster", self._cluster)
        app.router.add_post("/v1/resources/{name}/{order}", self._order)
        app.router.add_post("/v1/nodes/{name}/fence", self._fence)
        return app

    def status(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "node": "n1",
            "version": "0.1.0",
            "generation": 4,
            "reason": None,
            "resources": [self._resource(name, k) for k, name in enumerate(self.roles)],
            "peers": [{"node": "n2", "reachable": self.peer_reachable}],
            "leaving": [],
            "leftovers": [],
        }

    def cluster(self) -> dict[str, Any]:
        """What each node says: n2 the same as n1, from its own side."""
        other = self.status() | {"node": "n2"}
        for resource in other["resources"]:
            name = resource["name"]
            resource["role"] = "active" if self.active[name] == "n2" else "standby"
            resource["volumes"][0]["gate"] = "open" if self.active[name] == "n2" else "closed"
            resource["connections"][0]["peer"] = "n1"
        return {
            "schema": self.schema,
            "node": "n1",
            "cluster": "lab",
            "generation": 4,
            "nodes": [
                {"node": "n1", "reachable": True, "status": self.status(), "error": None},
                {
                    "node": "n2",
                    "reachable": self.peer_reachable,
                    "status": other if self.peer_reachable else None,
                    "error": None
                    if self.peer_reachable
                    else {"code": "peer-timeout", "message": "", "hint": ""},
                },
            ],
            "resources": [
                {
                    "name": name,
                    "iqn": f"iqn.2026-01.com.example:{name}",
                    "nodes": ["n1", "n2"],
                    "replicas": ["n1", "n2"],
                    "preferred": None,
                    "maintenance": False,
                    "active": [n for n in ("n1", "n2") if n == self.active[name]],
                }
                for name in self.roles
            ],
            "leftovers": [],
            **({} if self.failover is None else {"failover": self.failover}),
        }

    def _resource(self, name: str, k: int) -> dict[str, Any]:
        active = self.roles[name] == "active"
        peer = {
            "number": 0,
            "disk": "UpToDate" if self.resync is None else "Inconsistent",
            "replication": "Established" if self.resync is None else "SyncSource",
            "done": self.resync,
        }
        return {
            "name": name,
            "iqn": f"iqn.2026-01.com.example:{name}",
            "role": self.roles[name],
            "active_node": self.active[name],
            "reason": self.reason,
            "volumes": [
                {
                    "number": 0,
                    "lun": 0,
                    "size": 10 << 30,
                    "minor": 16 * (k + 1),
                    "gate": "open" if active else "closed",
                    "disk": "UpToDate" if self.up_to_date else "Inconsistent",
                    "alua": {"n1": "active/optimized" if active else "standby", "n2": "standby"},
                }
            ],
            "connections": [{"peer": "n2", "state": "Connected", "role": "Secondary", "volumes": [peer]}],
            "pending": [] if self.up_to_date else ["wait for resync"],
        }

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        if self.trouble == "hang":
            await self.ended.wait()
        if self.trouble == "drop" and request.transport is not None:
            request.transport.abort()
        if self.trouble == "garbage":
            return web.Response(text="<html>")
        if self.trouble == "mute":
            return web.Response(status=500)
        return answer

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _cluster(self, _: web.Request) -> web.Response:
        answer = self.cluster()
        if self.late:
            self.roles[self.late[0]] = "standby"
            self.active[self.late.pop(0)] = None
        return web.json_response(answer)

    async def _plan(self, _: web.Request) -> web.Response:
        step = {"action": "DrbdPrimary", "description": "make r0 primary", "reason": "ordered active"}
        steps = [] if self.roles["r0"] == "standby" else [step]
        return web.json_response(
            {"schema": self.schema, "node": "n1", "resources": [{"name": "r0", "actions": steps}]}
        )

    async def _order(self, request: web.Request) -> web.Response:
        name, order = request.match_info["name"], request.match_info["order"]
        if name not in self.roles:
            return _error(404, "unknown-resource", f"there is no resource {name}", "see: hactl status")
        if order == "promote" and self.pacemaker is not None:
            self.active[name] = self.pacemaker
            return _error(409, "pacemaker-in-charge", f"Pacemaker decides where {name} is active", "wait")
        if order == "promote" and self.not_ready:
            message = f"n1 cannot take over {name}: {self.not_ready.pop(0)}"
            return _error(409, self.not_ready_code, message, "see its hactl status")
        if order in ("promote", "switchover") and not self.up_to_date:
            return _error(
                409, "drbd-not-uptodate", f"the disk of {name} is Inconsistent", "wait for the resync"
            )
        if order == "switchover" and (await request.json())["to"] != "n2":
            return _error(409, "unknown-node", "there is no such node", "")
        if order == "demote" and self.reason:
            return _error(500, "device-busy", f"{name} stays primary: {self.reason}", "see: fuser")
        if order == "switchover" and not self.peer_reachable:
            return _error(504, "peer-timeout", "n2 did not answer", "see: hactl status")
        node = request.query.get("node", "n1")
        self.orders.append(f"{order} {name}" + (f" on {node}" if node != "n1" else ""))
        if node == "n1":
            self.roles[name] = {"promote": "active", "demote": "demoted", "switchover": "standby"}[order]
        self.active[name] = {"promote": node, "demote": None, "switchover": "n2"}[order]
        return web.json_response({"done": order, "seconds": 0.25})

    async def _fence(self, request: web.Request) -> web.Response:
        self.orders.append(f"fence {request.match_info['name']}")
        return web.json_response({"done": "fence", "seconds": 0.25})


def _error(status: int, code: str, message: str, hint: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message, "hint": hint}}, status=status)


@contextmanager
def serving(agent: FakeAgent, socket: Path) -> Iterator[None]:
    """Serve in a thread of its own, since the command line runs an event loop itself."""
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(agent.app(), shutdown_timeout=1)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        started.set()
        await agent.ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(10), "the fake agent did not start"
        yield
    finally:
        loop.call_soon_threadsafe(agent.ended.set)
        thread.join(10)
        loop.close()
