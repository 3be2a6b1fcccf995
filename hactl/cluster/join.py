"""Brings this machine into a cluster that it was invited to. Interrupted anywhere, it is run again."""

from __future__ import annotations

import base64
import ssl
from datetime import timedelta
from typing import Any

import aiohttp
from pydantic import Field, SecretStr, ValidationError

from hactl.agents.errors_http import error_of
from hactl.cluster import checks, node_config, pki, stack, unfinished
from hactl.cluster.draft import Draft
from hactl.cluster.init import refuse_in_cluster, set_aside_certificates
from hactl.cluster.invite import Token
from hactl.cluster.join_server import SCHEMA
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import AGENT_UNIT, Layout, remove, write
from hactl.cluster.membership import Me, save_endpoints, take_part
from hactl.cluster.node_config import NodeConfig, url
from hactl.cluster.unfinished import Unfinished
from hactl.errors import HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec, Frozen, Name
from hactl.store import desired as desired_state

SKEW = timedelta(minutes=5)
SECONDS = 60.0
"""For the answer to a request to join; the cluster may be electing a leader meanwhile."""


class Admission(Frozen):
    """What a node is given when it is admitted; texts are PEM, the key of Corosync base64."""

    cluster: Name
    id: int
    certificate: str
    ca: str
    ca_key: SecretStr
    corosync_key: SecretStr | None = None
    etcd: tuple[str, ...] = Field(min_length=1)


async def join(token: Token, draft: Draft, kit: Kit, tell: Tell) -> NodeConfig:
    """Join the cluster of the token as the node of the draft.

    Nothing is changed before the checks of this machine; then a refusal by the cluster leaves a key that
    belongs to nothing, and the same command is run again with what was wrong put right.
    """
    work = Unfinished(what="join", cluster=token.cluster, draft=draft)
    checks.refuse_unless_root(kit.machine)
    again = unfinished.resumed(kit.layout, work)
    if not again:
        refuse_in_cluster(kit)
    await checks.check(draft, kit, resumed=again)
    if not kit.layout.node_file.exists():
        if not again and token.expires < kit.now():
            raise Refused(
                "invitation-expired",
                f"the invitation expired at {token.expires:%Y-%m-%d %H:%M} UTC",
                "make another on a node of the cluster: hactl cluster invite",
            )
        tell(f"asking {token.address} to be let in")
        ca, pacemaker = await _authority(token, draft, kit)
        if pacemaker:
            await checks.check_pacemaker(draft, kit, resumed=again)
        if not again:
            set_aside_certificates(kit, tell)
            # Another cluster's, or an earlier life of this one, whose generations were higher.
            remove(kit.layout.desired_copy)
            stack.forget_earlier(kit.layout)
            unfinished.save(kit.layout, work)
        try:
            admission = await _ask(token, draft, kit, ca)
        except Refused:
            # Nothing was changed there: with other options, it is another try.
            if not again:
                unfinished.done(kit.layout)
            raise
        tell(f"admitted to the cluster {admission.cluster} as node {admission.id}, {draft.name}")
        _save(admission, draft, kit.layout)
    return await complete(kit, tell)


async def complete(kit: Kit, tell: Tell) -> NodeConfig:
    """Everything after the admission: a part in etcd if one is to be had, the agent, and nothing unfinished.

    Also for a node that is in the cluster already: repairs what is missing of it, and takes the place of a
    member of etcd that was removed.
    """
    checks.refuse_unless_root(kit.machine)
    config = node_config.load(kit.layout.node_file)
    begun = unfinished.load(kit.layout)
    if begun is not None and begun.what != "join":
        raise Refused(
            "unfinished",
            f"hactl cluster {begun.what} was begun and is not finished on this machine",
            "run it again as it was",
        )
    _, address = pki.names(kit.layout.certificates.certificate.read_bytes())
    cluster = await _cluster(kit, config)
    if cluster.pacemaker:
        # First of all: the others expect it since they admitted this node, and count its vote as missing.
        await stack.set_up(kit, cluster, tell)
    endpoints = await take_part(kit, Me(config.cluster, config.node, address), config.etcd, tell)
    save_endpoints(kit, config, endpoints)
    tell(f"starting {AGENT_UNIT}")
    await kit.services.start(AGENT_UNIT)
    if cluster.pacemaker:
        # After the agent, which Pacemaker asks about everything.
        await stack.start_pacemaker(kit, tell)
    unfinished.done(kit.layout)
    return node_config.load(kit.layout.node_file)


async def _cluster(kit: Kit, config: NodeConfig) -> ClusterSpec:
    store = kit.store(config)
    try:
        return (await desired_state.read(store, config.cluster)).cluster
    finally:
        await store.close()


async def _authority(token: Token, draft: Draft, kit: Kit) -> tuple[str, bool]:
    """The authority's certificate (PEM) from the inviting node, which is believed only as its key is the one
    that the token names; nothing is told to that node before. And whether the cluster has Pacemaker, by that
    node's word, for what is to be looked at here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    told = await _request(token, draft, context, "GET", "/v1/ca", None)
    try:
        ca, theirs, pacemaker = str(told["ca"]), float(told["now"]), told.get("pacemaker") is True
        right = pki.fingerprint(ca.encode()) == token.fingerprint
    except (KeyError, TypeError, ValueError, Refused) as error:
        raise Refused(
            "inviter-answer", f"{token.address} does not answer as a hactl node does: {error!r}"
        ) from None
    if not right:
        raise Refused(
            "authority-mismatch",
            f"{token.address} is no node of the cluster that the token is for: its authority has another key",
            "was the cluster made anew? Make a new token there: hactl cluster invite",
        )
    skew = abs(kit.now().timestamp() - theirs)
    if skew > SKEW.total_seconds():
        raise Refused(
            "clock-wrong",
            f"the clocks of this machine and of {token.address} are {skew:.0f} s apart",
            "let both be kept by NTP: systemctl enable --now systemd-timesyncd (or chrony)",
        )
    return ca, pacemaker


async def _ask(token: Token, draft: Draft, kit: Kit, ca: str) -> Admission:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca)
    key = pki.ensure_key(kit.layout)
    body = {
        "schema": SCHEMA,
        "id": token.id,
        "secret": token.secret,
        "csr": pki.request(key, draft.name).decode(),
        "node": draft.model_dump(mode="json"),
    }
    told = await _request(token, draft, context, "POST", "/v1/join", body)
    try:
        if told.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        admission = Admission.model_validate(told)
    except (ValueError, KeyError, AttributeError, ValidationError):
        # Without the answer's words, which the authority's key is among.
        raise Unknown(
            "inviter-answer",
            f"{token.address} answered what this hactl does not understand",
            "install the same hactl on both, and run it again",
        ) from None
    certificate = admission.certificate.encode()
    if (
        admission.cluster != token.cluster
        or pki.fingerprint(admission.ca.encode()) != token.fingerprint
        or not pki.signed_by(certificate, ca.encode())
        or pki.names(certificate) != (draft.name, draft.addresses.cluster)
        or pki.fingerprint(certificate) != pki.public_fingerprint(key.public_key())
    ):
        raise Unknown("inviter-answer", f"{token.address} answered with a certificate for something else")
    return admission


async def _request(
    token: Token, draft: Draft, context: ssl.SSLContext, method: str, path: str, body: dict[str, Any] | None
) -> Any:
    # From the cluster address, so that the cluster sees whether it can be reached under it.
    connector = aiohttp.TCPConnector(local_addr=(str(draft.addresses.cluster), 0))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False) as session,
            session.request(
                method,
                url(token.address, token.port) + path,
                json=body,
                ssl=context,
                timeout=aiohttp.ClientTimeout(total=SECONDS, sock_connect=10),
                allow_redirects=False,
            ) as answer,
        ):
            value = await answer.json()
            if answer.status != 200:
                raise error_of(answer.status, value)
            return value
    except HactlError:
        raise
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Refused(
            "inviter-unreachable",
            f"{token.address} port {token.port} cannot be reached from {draft.addresses.cluster}: {error}",
            "see systemctl status hactl-agent there, and the cluster network; any node can invite",
        ) from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        kind = Refused if method == "GET" else Unknown
        raise kind("inviter-answer", f"no answer from {token.address}: {error!r}", "run it again") from None


def _save(admission: Admission, draft: Draft, layout: Layout) -> None:
    """node.yaml last: with it the admission is complete."""
    write(layout.certificates.ca, admission.ca, 0o644)
    write(layout.authority_key, admission.ca_key.get_secret_value())
    write(layout.certificates.certificate, admission.certificate, 0o644)
    if admission.corosync_key is not None:
        stack.save_key(layout, base64.b64decode(admission.corosync_key.get_secret_value()))
    config = NodeConfig(cluster=admission.cluster, node=draft.name, etcd=admission.etcd)
    node_config.save(config, layout.node_file)
