"""Talks to this node's agent: HTTP and JSON over its Unix socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from hactl.cli.exits import AgentUnreachable
from hactl.errors import Failed, HactlError, Refused, Unknown

SCHEMA = 1
"""The version of the agent's documents that this hactl understands."""

READ_SECONDS = 15.0
"""How long a question to the agent may take; it observes the kernel to answer."""


class AgentClient:
    """One agent; an asynchronous context manager.

    Every error is one of :mod:`hactl.errors`: :class:`AgentUnreachable` if the request never got there,
    :class:`Refused` and :class:`Failed` as the agent said, and :class:`Unknown` if an order was sent and its
    answer did not come or was not understood.
    """

    def __init__(
        self, socket: str, *, order_seconds: float = 120.0, read_seconds: float = READ_SECONDS
    ) -> None:
        self._socket = socket
        self._order_seconds = order_seconds
        self._read_seconds = read_seconds

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=self._socket)
        self._session = aiohttp.ClientSession(connector=connector, base_url="http://agent")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def status(self) -> dict[str, Any]:
        """The node's status document."""
        return _known(await self._ask("GET", "/v1/status", self._read_seconds))

    async def plan(self) -> dict[str, Any]:
        """What the agent would do next, by resource."""
        return _known(await self._ask("GET", "/v1/plan", self._read_seconds))

    async def promote(self, resource: str) -> dict[str, Any]:
        """Make this node the active one of a resource."""
        return await self._order(resource, "promote", {})

    async def demote(self, resource: str) -> dict[str, Any]:
        """Make this node a standby one of a resource."""
        return await self._order(resource, "demote", {})

    async def switchover(self, resource: str, to: str) -> dict[str, Any]:
        """Move a resource from this node, which must be the active one, to another."""
        return await self._order(resource, "switchover", {"to": to})

    async def _order(self, resource: str, order: str, body: Mapping[str, str]) -> dict[str, Any]:
        path = f"/v1/resources/{quote(resource, safe='')}/{order}"
        return await self._ask("POST", path, self._order_seconds, body)

    async def _ask(
        self, method: str, path: str, seconds: float, body: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        order = method == "POST"
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(method, path, json=body, timeout=timeout) as response:
                status, answer = response.status, await _json(response)
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(error.os_error) from None
        except TimeoutError:
            raise self._lost(order, "agent-timeout", f"did not answer within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            reason = f"broke off the connection ({type(error).__name__})"
            raise self._lost(order, "agent-connection-lost", reason) from None
        if status >= 400:
            raise _error(order, status, answer)
        if not isinstance(answer, dict):
            raise self._lost(order, "agent-bad-answer", "did not answer with a JSON object")
        return answer

    def _unreachable(self, error: OSError) -> AgentUnreachable:
        reason = error.strerror or str(error)
        if isinstance(error, PermissionError):
            hint = "run hactl as root, or with sudo"
        else:
            hint = "is it running? systemctl status hactl-agent; journalctl -u hactl-agent"
        message = f"the agent at {self._socket} cannot be reached: {reason}"
        return AgentUnreachable("agent-unreachable", message, hint)

    def _lost(self, order: bool, code: str, reason: str) -> HactlError:
        message = f"the agent at {self._socket} {reason}"
        if order:
            # The request may have arrived: only the agent's answer could tell what came of it.
            return Unknown(
                code, f"{message}; whether the order is carried out is not known", "see: hactl status"
            )
        return AgentUnreachable(code, message, "journalctl -u hactl-agent tells what it is doing")


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        return None


def _known(answer: dict[str, Any]) -> dict[str, Any]:
    schema = answer.get("schema")
    if schema != SCHEMA:
        raise Failed(
            "agent-schema",
            f"the agent answers in schema {schema!r}; this hactl understands {SCHEMA}",
            "use the hactl that belongs to the agent, and restart the agent after an upgrade",
        )
    return answer


def _error(order: bool, status: int, answer: Any) -> HactlError:
    told = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(told, dict) and told.get("code") and told.get("message"):
        code, message, hint = str(told["code"]), str(told["message"]), str(told.get("hint") or "")
    else:
        code, message = "agent-bad-answer", f"the agent answered with HTTP status {status} and no reason"
        hint = "journalctl -u hactl-agent"
        if order and status >= 500:
            return Unknown(code, message, hint)
    if status < 500:
        return Refused(code, message, hint)
    if status == 500 or not order:
        return Failed(code, message, hint)
    return Unknown(code, message, hint)
