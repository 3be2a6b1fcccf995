"""Talks to this node's agent: HTTP and JSON over its Unix socket.

With the standard library: a storage node takes longer to import an HTTP framework than to carry out an order.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from hactl.cli.exits import AgentUnreachable
from hactl.errors import Failed, HactlError, Refused, Unknown

SCHEMA = 1
"""The version of the agent's documents that this hactl understands."""

READ_SECONDS = 15.0
"""How long a question to the agent may take; it observes the kernel to answer."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket; the whole exchange has to end in ``seconds``."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("agent", timeout=seconds)
        self._path = path
        self._end = time.monotonic() + seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(max(self._end - time.monotonic(), 0.001))
        self.sock.connect(self._path)


class AgentClient:
    """One agent.

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

    def status(self) -> dict[str, Any]:
        """The node's status document."""
        return _known(self._ask("GET", "/v1/status", self._read_seconds))

    def cluster(self) -> dict[str, Any]:
        """Every node's status document, as far as this node's agent reaches theirs."""
        return _known(self._ask("GET", "/v1/cluster", self._read_seconds))

    def plan(self) -> dict[str, Any]:
        """What the agent would do next, by resource."""
        return _known(self._ask("GET", "/v1/plan", self._read_seconds))

    def promote(self, resource: str, node: str | None = None) -> dict[str, Any]:
        """Make this node, or another one through this node's agent, the active one of a resource."""
        return self._order(resource, "promote", {}, node)

    def demote(self, resource: str, node: str | None = None) -> dict[str, Any]:
        """Make this node, or another one through this node's agent, a standby one of a resource."""
        return self._order(resource, "demote", {}, node)

    def switchover(self, resource: str, to: str) -> dict[str, Any]:
        """Move a resource from the node that is active to another."""
        return self._order(resource, "switchover", {"to": to})

    def clear_reservations(self, resource: str, volume: int | None, by: str) -> dict[str, Any]:
        """Clear the persistent reservations of one volume, or of all, on all nodes."""
        body = {"volume": "all" if volume is None else str(volume), "by": by}
        return self._order(resource, "reservations/clear", body)

    def fence(self, node: str) -> dict[str, Any]:
        """Have Pacemaker switch a node off and on again."""
        return self._ask("POST", f"/v1/nodes/{quote(node, safe='')}/fence", self._order_seconds, {})

    def _order(
        self, resource: str, order: str, body: Mapping[str, str], node: str | None = None
    ) -> dict[str, Any]:
        path = f"/v1/resources/{quote(resource, safe='')}/{order}"
        if node is not None:
            path += f"?node={quote(node, safe='')}"
        return self._ask("POST", path, self._order_seconds, body)

    def _ask(
        self, method: str, path: str, seconds: float, body: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        order = method == "POST"
        text = None if body is None else json.dumps(body)
        connection = _Connection(self._socket, seconds)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise self._unreachable(error) from None
            connection.request(method, path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, answer = response.status, _parsed(response.read())
        except TimeoutError:
            raise self._lost(order, "agent-timeout", f"did not answer within {seconds:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            reason = f"broke off the connection ({type(error).__name__})"
            raise self._lost(order, "agent-connection-lost", reason) from None
        finally:
            connection.close()
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


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
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
