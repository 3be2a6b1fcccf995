"""Agents talk over the cluster network: HTTPS, each side showing a certificate with its node's name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import aiohttp
import structlog
from aiohttp import web

from hactl.agents.errors_http import Handler, as_json, body_of, error_of
from hactl.agents.peers import UNREACHABLE, Left, PeerResource, PeerService
from hactl.agents.states import OrderedRole
from hactl.cluster.certificates import Certificates
from hactl.cluster.layout import AGENT_PORT
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec, IpAddress

__all__ = ["PORT", "Certificates", "HttpsPeers", "app", "certificate_names", "listen"]

T = TypeVar("T")

PORT = AGENT_PORT
QUESTION = 3.0
"""Seconds for questions that change nothing, connecting included."""
ORDER = 5.0
"""Seconds for orders; one that takes longer goes on at the peer, and is asked about again."""
RESERVED = 4.0
"""Seconds to apply an entry of a PR log; the initiator does not wait for longer."""
_NAMES = 32
"""Names that fit into a question; for more everything is asked."""
OPERATOR = 30.0
"""Seconds for orders of an operator that are passed on, and for whole status documents."""

_log = structlog.get_logger("hactl.agent")


class HttpsPeers:
    """Keeps :class:`hactl.agents.peers.Peers`; one connection per node is kept open between questions."""

    def __init__(self, context: ssl.SSLContext | None, port: int = PORT) -> None:
        self._addresses: dict[str, IpAddress] = {}
        # None only where there is nobody to ask, or in tests.
        self._context = context
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    def follow(self, cluster: ClusterSpec) -> None:
        self._addresses = {n.name: n.addresses.cluster for n in cluster.nodes}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def status(self, node: str, only: Collection[str] = ()) -> dict[str, PeerResource]:
        # Names need no quoting (hactl.model.names).
        which = "&".join(f"resource={name}" for name in sorted(only)) if len(only) <= _NAMES else ""
        answer = await self._ask(node, "GET", f"status?{which}")
        found = {name: _resource(value) for name, value in answer["resources"].items()}
        return {name: value for name, value in found.items() if not only or name in only}

    async def document(self, node: str) -> dict[str, Any]:
        answer = await self._ask(node, "GET", "document", seconds=OPERATOR)
        if not isinstance(answer, dict):
            raise Unknown("peer-answer", f"the status of {node} is not a JSON object")
        return answer

    async def ready(self, node: str, resource: str, handover: str) -> tuple[str, ...]:
        answer = await self._ask(
            node, "POST", f"resources/{resource}/ready", {"id": handover}, seconds=QUESTION
        )
        return tuple(str(reason) for reason in answer["reasons"])

    async def promote(self, node: str, resource: str, handover: str) -> None:
        await self._ask(node, "POST", f"resources/{resource}/promote", {"id": handover})

    async def abort(self, node: str, resource: str, handover: str) -> bool:
        answer = await self._ask(node, "POST", f"resources/{resource}/abort", {"id": handover})
        return answer["active"] is True

    async def announce(self, node: str, resource: str, active: str) -> None:
        body = {"active": active}
        await self._ask(node, "POST", f"resources/{resource}/announce", body, seconds=QUESTION)

    async def outdate(self, node: str, resource: str) -> Left:
        answer = await self._ask(node, "POST", f"resources/{resource}/outdate", {})
        try:
            return Left(answer["left"])
        except (TypeError, KeyError, ValueError) as error:
            raise Unknown("peer-answer", f"an answer that is not understood: {error!r}") from error

    async def reserved(self, node: str, unit: str, index: int) -> None:
        await self._ask(node, "POST", f"units/{unit}/reserved", {"index": str(index)}, seconds=RESERVED + 1)

    async def switchover(self, node: str, resource: str, to: str) -> None:
        await self._ask(node, "POST", f"resources/{resource}/switchover", {"to": to}, seconds=OPERATOR)

    async def order(self, node: str, resource: str, order: str) -> None:
        await self._ask(node, "POST", f"resources/{resource}/order", {"order": order}, seconds=OPERATOR)

    async def _ask(
        self,
        node: str,
        method: str,
        what: str,
        body: dict[str, str] | None = None,
        *,
        seconds: float | None = None,
    ) -> Any:
        limit = seconds if seconds is not None else (QUESTION if method == "GET" else ORDER)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(keepalive_timeout=60), trust_env=False
            )
        address = self._addresses.get(node)
        if address is None:
            raise Refused(UNREACHABLE, f"the cluster has no node {node}", "see hactl status")
        host = f"[{address}]" if address.version == 6 else str(address)
        try:
            async with self._session.request(
                method,
                f"https://{host}:{self._port}/v1/peer/{what}",
                json=body,
                ssl=self._context or True,
                server_hostname=node,
                timeout=aiohttp.ClientTimeout(total=limit, sock_connect=min(QUESTION, limit)),
            ) as answer:
                if answer.status != 200:
                    raise error_of(answer.status, await _json(answer))
                return await _json(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # No connection, so nothing was sent: the one failure that leaves no doubt.
            raise Refused(
                UNREACHABLE,
                f"the agent on {node} cannot be reached: {error}",
                f"see systemctl status hactl-agent on {node}, and the cluster network",
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unknown(
                "peer-lost", f"no answer from the agent on {node}: {error!r}", "ask again"
            ) from error


async def _json(answer: aiohttp.ClientResponse) -> Any:
    try:
        return await answer.json()
    except (ValueError, aiohttp.ContentTypeError) as error:
        raise Unknown("peer-answer", f"an answer that is not JSON: {error}") from error


def _resource(value: Any) -> PeerResource:
    try:
        return PeerResource(
            role=OrderedRole(value["role"]),
            serving=value["serving"] is True,
            primary=value["primary"] is True,
            active_node=value["active_node"],
            fresh=tuple(int(number) for number in value["fresh"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise Unknown(
            "peer-answer", f"a status that is not understood: {error!r}", "same hactl on all nodes?"
        ) from error


def app(service: PeerService, others: Callable[[], Collection[str]]) -> web.Application:
    """The answering side; lets in nobody but the nodes that ``others`` names at that moment."""

    def caller(request: web.Request) -> str:
        names = certificate_names(request)
        found = next((n for n in sorted(others()) if n in names), None)
        if found is None:
            raise Refused("not-a-node", f"the certificate is of {sorted(names)}, which are no other nodes")
        return found

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        caller(request)
        return await handler(request)

    async def status(request: web.Request) -> web.Response:
        views = await service.on_status(caller(request), request.query.getall("resource", []))
        return web.json_response({"resources": {name: asdict(view) for name, view in views.items()}})

    async def document(request: web.Request) -> web.Response:
        return web.json_response(await service.on_document(caller(request)))

    async def ready(request: web.Request) -> web.Response:
        (handover,) = await body_of(request, "id")
        reasons = await service.on_ready(caller(request), request.match_info["resource"], handover)
        return web.json_response({"reasons": list(reasons)})

    async def promote(request: web.Request) -> web.Response:
        (handover,) = await body_of(request, "id")
        await _to_its_end(service.on_promote(caller(request), request.match_info["resource"], handover))
        return web.json_response({})

    async def abort(request: web.Request) -> web.Response:
        (handover,) = await body_of(request, "id")
        active = await _to_its_end(
            service.on_abort(caller(request), request.match_info["resource"], handover)
        )
        return web.json_response({"active": active})

    async def announce(request: web.Request) -> web.Response:
        (active,) = await body_of(request, "active")
        await service.on_announce(caller(request), request.match_info["resource"], active)
        return web.json_response({})

    async def outdate(request: web.Request) -> web.Response:
        left = await _to_its_end(service.on_outdate(caller(request), request.match_info["resource"]))
        return web.json_response({"left": left.value})

    async def reserved(request: web.Request) -> web.Response:
        (index,) = await body_of(request, "index")
        unit = request.match_info["unit"]
        if not index.isdecimal():
            raise Refused("bad-request", f"index is {index!r}, not a number", "same hactl on all nodes?")
        try:
            async with asyncio.timeout(RESERVED):
                await service.on_reserved(caller(request), unit, int(index))
        except TimeoutError:
            raise Failed(
                "not-applied", f"unit {unit} has not entry {index} of its log yet", "ask again"
            ) from None
        return web.json_response({})

    async def switchover(request: web.Request) -> web.Response:
        (to,) = await body_of(request, "to")
        await _to_its_end(service.on_switchover(caller(request), request.match_info["resource"], to))
        return web.json_response({})

    async def order(request: web.Request) -> web.Response:
        (what,) = await body_of(request, "order")
        await _to_its_end(service.on_order(caller(request), request.match_info["resource"], what))
        return web.json_response({})

    application = web.Application(middlewares=[as_json, let_in], client_max_size=64 << 10)
    application.router.add_get("/v1/peer/status", status)
    application.router.add_get("/v1/peer/document", document)
    application.router.add_post("/v1/peer/resources/{resource}/ready", ready)
    application.router.add_post("/v1/peer/resources/{resource}/promote", promote)
    application.router.add_post("/v1/peer/resources/{resource}/abort", abort)
    application.router.add_post("/v1/peer/resources/{resource}/announce", announce)
    application.router.add_post("/v1/peer/resources/{resource}/switchover", switchover)
    application.router.add_post("/v1/peer/resources/{resource}/order", order)
    application.router.add_post("/v1/peer/resources/{resource}/outdate", outdate)
    application.router.add_post("/v1/peer/units/{unit}/reserved", reserved)
    return application


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Go on with an order even if the one who asked hangs up: half-way is where nobody wants it to stop."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        # Nobody is told any more what came of it.
        task.add_done_callback(_log_outcome)
        raise


def _log_outcome(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, HactlError):
        _log.warning("an order whose answer nobody waits for", code=error.code, error=str(error))
    elif error is not None:
        _log.error("an error in hactl", exc_info=error)


def certificate_names(request: web.Request) -> frozenset[str]:
    """DNS names in the certificate that the caller showed and the CA signed; none if it showed none."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate:
        return frozenset()
    return frozenset(str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")


async def listen(
    application: web.Application, address: IpAddress, context: ssl.SSLContext, port: int = PORT
) -> web.AppRunner:
    """Serve on the cluster address of this node only."""
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=75, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, str(address), port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise Failed(
            "listen",
            f"cannot listen on {address} port {port}: {error}",
            "is that this node's address in the cluster network, and is the port free?",
        ) from error
    return runner
