"""Lets machines in that have an invitation: HTTPS on the cluster address, without client certificates.

``GET /v1/ca`` answers ``{schema, ca, now, pacemaker}`` to anybody: the authority's certificate, which the
token has the fingerprint of. ``POST /v1/join`` takes ``{schema, id, secret, csr, node}``, with the secret,
only after the asking side has checked this server's certificate against that authority, and answers
``{schema, cluster, id, certificate, ca, ca_key, etcd}``, and ``corosync_key`` (base64) where the cluster has
Pacemaker.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from pydantic import Field, SecretStr, ValidationError

from hactl.agents import peer
from hactl.agents.errors_http import as_json
from hactl.cluster import corosync, invite, node_config, pki
from hactl.cluster.draft import Draft
from hactl.cluster.invite import JOIN_PORT
from hactl.cluster.layout import Layout
from hactl.errors import Failed, HactlError, Refused
from hactl.model.desired import Desired
from hactl.model.edit import add_node
from hactl.model.spec import Frozen
from hactl.store import desired as desired_state
from hactl.store.desired import Origin
from hactl.store.protocol import Store

SCHEMA = 1
_log = structlog.get_logger("hactl.join")


class JoinRequest(Frozen):
    """What a machine sends that wants to join."""

    id: str = Field(max_length=64)
    secret: SecretStr = Field(max_length=256)
    csr: str = Field(max_length=8192)
    node: Draft


class RateLimit:
    """So many tries in so many seconds from one address, and ten times that from all together."""

    def __init__(
        self, tries: int = 10, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tries = tries
        self._seconds = seconds
        self._clock = clock
        self._seen: OrderedDict[str, list[float]] = OrderedDict()

    def count(self, address: str) -> None:
        """Count a try; :class:`Refused` ``too-many-tries`` if there were too many."""
        now = self._clock()
        for known in list(self._seen):
            self._seen[known] = [t for t in self._seen[known] if now - t < self._seconds]
            if not self._seen[known]:
                del self._seen[known]
        own = self._seen.get(address, [])
        if len(own) >= self._tries or sum(map(len, self._seen.values())) >= 10 * self._tries:
            raise Refused(
                "too-many-tries",
                f"too many tries to join within {self._seconds:g} s",
                "wait a minute and try again",
            )
        self._seen[address] = [*own, now]


class Door:
    """Admits machines to the cluster that this node is in."""

    def __init__(self, store: Store, layout: Layout, now: Callable[[], datetime] = pki.utc_now) -> None:
        self._store = store
        self._layout = layout
        self._now = now
        self._one_by_one = asyncio.Lock()

    def authority(self) -> dict[str, Any]:
        """The authority's certificate, the time here (seconds since 1970, UTC), and whether a machine that
        joins needs Pacemaker."""
        ca = (self._layout.certificates.ca).read_text(encoding="ascii")
        return {
            "schema": SCHEMA,
            "ca": ca,
            "now": self._now().timestamp(),
            "pacemaker": self._layout.corosync_key.exists(),
        }

    async def join(self, asked: JoinRequest, remote: str) -> dict[str, Any]:
        """Admit a machine: its use is counted, it is a node of the cluster, and gets a certificate. Asked
        again with the same key, it does the same and changes nothing more."""
        try:
            public = pki.requested_key(asked.csr.encode())
        except ValueError as error:
            raise Refused("bad-request", f"the request for a certificate: {error}") from None
        node = asked.node
        if remote != str(node.addresses.cluster):
            raise Refused(
                "join-address",
                f"node {node.name} asks from {remote}, which is not its cluster address"
                f" {node.addresses.cluster}",
                "check --cluster-address, and that nothing translates addresses in between",
            )
        async with self._one_by_one:
            config = node_config.load(self._layout.node_file)
            current = await desired_state.read(self._store, config.cluster)
            await invite.admit(
                self._store,
                config.cluster,
                asked.id,
                asked.secret.get_secret_value(),
                node=node.name,
                key=pki.public_fingerprint(public),
                exists=any(n.name == node.name for n in current.cluster.nodes),
                now=self._now(),
            )
            authority = pki.load_authority(self._layout)
            changed = await desired_state.change(
                self._store,
                config.cluster,
                lambda now: _with(now, node),
                what=f"node {node.name} joined",
                origin=Origin(config.node),
            )
            now = self._now()
            certificate = authority.issue(public, node.name, node.addresses.cluster, now)
        _log.info("node admitted", node=node.name, address=str(node.addresses.cluster), invitation=asked.id)
        return {
            **self._corosync(changed.cluster.pacemaker),
            "schema": SCHEMA,
            "cluster": config.cluster,
            "id": changed.cluster.node(node.name).id,
            "certificate": certificate.decode(),
            "ca": authority.certificate.public_bytes(serialization.Encoding.PEM).decode(),
            "ca_key": pki.key_pem(authority.key).decode(),
            "etcd": list(config.etcd),
        }

    def _corosync(self, pacemaker: bool) -> dict[str, str]:
        if not pacemaker:
            return {}
        try:
            key = self._layout.corosync_key.read_bytes()
        except OSError as error:
            raise Failed(
                "corosync-key",
                f"this node has no key of Corosync's to hand on: {error}",
                "join by another node",
            ) from None
        return {"corosync_key": base64.b64encode(key).decode()}


def _with(now: Desired, node: Draft) -> Desired:
    after = add_node(now, node.name, node.addresses, failure_domain=node.failure_domain, pools=node.pools)
    if after.cluster.pacemaker:
        corosync.links(after.cluster)  # refuses what Corosync could not do
    return after


def join_app(door: Door, limit: RateLimit | None = None) -> web.Application:
    """The application; ``limit`` counts the tries to join."""
    tries = limit or RateLimit()

    async def authority(_: web.Request) -> web.Response:
        return web.json_response(door.authority())

    async def join(request: web.Request) -> web.Response:
        remote = request.remote or ""
        tries.count(remote)
        asked = await _request(request)
        try:
            # To its end even if the machine hangs up: half-way is where nobody wants it to stop.
            answer = await asyncio.shield(asyncio.ensure_future(door.join(asked, remote)))
        except HactlError as error:
            _log.warning("join refused", remote=remote, node=asked.node.name, code=error.code)
            raise
        return web.json_response(answer)

    app = web.Application(middlewares=[as_json], client_max_size=64 << 10)
    app.router.add_get("/v1/ca", authority)
    app.router.add_post("/v1/join", join)
    return app


async def _request(request: web.Request) -> JoinRequest:
    try:
        value = await request.json()
        if not isinstance(value, dict):
            raise TypeError("not an object")
        schema = value.pop("schema", None)
    except (ValueError, TypeError):
        raise Refused("bad-request", "the body is not a JSON object") from None
    if schema != SCHEMA:
        raise Refused(
            "join-schema",
            f"asked with schema {schema!r}, answered is {SCHEMA}",
            "install the same hactl on both",
        )
    try:
        return JoinRequest.model_validate(value)
    except ValidationError as error:
        # Place and words, without the value, which may be the secret.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused("bad-request", f"{where}: {first['msg']}") from None


def server_context(layout: Layout) -> ssl.SSLContext:
    """Shows this node's certificate and asks for none. After a renewal load the chain into it again
    (:func:`hactl.cluster.pki.renew` does)."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(layout.certificates.certificate, layout.certificates.key)
    except (OSError, ssl.SSLError) as error:
        raise Failed("tls", f"cannot use the certificates in {layout.tls}: {error}") from error
    return context


async def serve_join(
    store: Store,
    *,
    layout: Layout | None = None,
    context: ssl.SSLContext | None = None,
    port: int = JOIN_PORT,
    limit: RateLimit | None = None,
) -> web.AppRunner:
    """Serve on this node's cluster address until ``cleanup()`` of what is returned.

    ``context``: of :func:`server_context`, for who wants to renew it. :class:`Failed` ``listen`` or ``tls``.
    """
    where = layout or Layout()
    _, address = pki.names(where.certificates.certificate.read_bytes())
    return await peer.listen(
        join_app(Door(store, where), limit), address, context or server_context(where), port
    )
