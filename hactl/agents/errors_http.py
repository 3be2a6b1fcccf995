"""Errors over HTTP: hactl's errors as status and JSON, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from hactl.errors import Failed, HactlError, Refused, Unknown

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger("hactl.agent")

_NOT_FOUND = "unknown-resource"


def status_of(error: HactlError) -> int:
    """Refused 409 (404 for a resource that is not there), Failed 500, Unknown 504."""
    if error.code == _NOT_FOUND:
        return 404
    if isinstance(error, Refused):
        return 409
    return 504 if isinstance(error, Unknown) else 500


def error_of(status: int, body: Any) -> HactlError:
    """The error that a peer's answer tells of. What is not an answer of hactl's leaves the outcome
    unknown."""
    try:
        told = body["error"]
        code, message, hint = str(told["code"]), str(told["message"]), str(told.get("hint", ""))
    except (TypeError, KeyError, AttributeError):
        return Unknown("peer-answer", f"answer with HTTP status {status} that is not hactl's")
    if status in (400, 404, 409):
        return Refused(code, message, hint)
    return Failed(code, message, hint) if status == 500 else Unknown(code, message, hint)


@web.middleware
async def as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into ``{"error": {"code", "message", "hint"}}``. One that is none of hactl's is
    logged; what it was in the middle of may or may not have been done, so it is told as :class:`Unknown`."""
    try:
        return await handler(request)
    except HactlError as error:
        return web.json_response({"error": error.as_dict()}, status=status_of(error))
    except web.HTTPException as error:
        told = {"code": "http", "message": f"{request.method} {request.path}: {error.reason}", "hint": ""}
        return web.json_response({"error": told}, status=error.status)
    except Exception as error:  # noqa: BLE001 - the agent goes on, and whoever asked is told
        _log.exception("an error in hactl", method=request.method, path=request.path)
        unknown = _internal(error)
        return web.json_response({"error": unknown.as_dict()}, status=status_of(unknown))


def _internal(error: Exception) -> Unknown:
    return Unknown(
        "internal-error",
        f"{type(error).__name__}: {error}",
        "this is an error in hactl: journalctl -u hactl-agent has more",
    )


async def body_of(request: web.Request, *names: str) -> tuple[str, ...]:
    """The named text fields of a JSON body, all required; :class:`Refused` (``bad-request``) otherwise."""
    try:
        value = await request.json()
    except ValueError as error:
        raise Refused("bad-request", f"the body of {request.path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused("bad-request", f"the body of {request.path} is not a JSON object")
    found = []
    for name in names:
        field = value.get(name)
        if not isinstance(field, str) or not field:
            raise Refused("bad-request", f"{request.path} needs the text field {name!r}")
        found.append(field)
    return tuple(found)
