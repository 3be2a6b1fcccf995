"""Makes this node a member of etcd, or keeps to using it; every step is chosen from what is there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from hactl.cluster import etcd_config, node_config, pki
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import ETCD_UNIT, write
from hactl.cluster.members import (
    NOT_YET,
    UNKNOWN,
    UNREACHABLE,
    Member,
    Members,
    Step,
    client_urls,
    next_step,
    own_member,
)
from hactl.cluster.node_config import CLIENT_PORT, PEER_PORT, NodeConfig, url
from hactl.errors import Failed, HactlError
from hactl.model.spec import IpAddress

T = TypeVar("T")
LEFT = "etcd-not-left"
_PASSING = frozenset({NOT_YET, UNKNOWN, UNREACHABLE})


class Again(HactlError):
    """Raised within :func:`until`: look again in a moment."""


@dataclass(frozen=True)
class Me:
    """This node, as etcd sees it."""

    cluster: str
    node: str
    address: IpAddress

    @property
    def peer_url(self) -> str:
        return url(self.address, PEER_PORT)

    @property
    def client_url(self) -> str:
        return url(self.address, CLIENT_PORT)


async def first_member(kit: Kit, me: Me, tell: Tell) -> None:
    """See that etcd runs here as the first member of a new cluster.

    Only while the cluster is being made: once it has other members, an etcd that lost its data must never be
    told to make a new cluster again, so the file says so as soon as there is one.
    """
    data = has_data(kit)
    _write_config(kit, me, {me.node: me.peer_url}, new=not data)
    await kit.services.install()
    members = kit.members([me.client_url])
    try:
        if await members.status(me.client_url) is None:
            tell(f"starting {ETCD_UNIT}")
            await kit.services.start(ETCD_UNIT, wait=False)

        async def leads() -> None:
            status = await members.status(me.client_url)
            if status is None or not status.leader:
                raise Again("etcd-not-started", "etcd does not answer yet")

        await until(kit, leads, "etcd-not-started")
    finally:
        await members.close()
    _write_config(kit, me, {me.node: me.peer_url}, new=False)


async def take_part(kit: Kit, me: Me, endpoints: Sequence[str], tell: Tell) -> tuple[str, ...]:
    """See that this node is a member if one is wanted; the client URLs of all voting members.

    ``endpoints``: client URLs of members known so far. May be interrupted anywhere and run again.
    :class:`Failed` ``etcd-not-started`` or ``etcd-not-member`` if it does not come about in time.
    """
    # Others first: this node's own member answers nothing of use while it learns.
    others = [e for e in endpoints if e != me.client_url]
    members = kit.members([*others, me.client_url])
    said: set[Step] = set()
    try:

        async def step() -> tuple[str, ...]:
            listed = await members.list()
            running = await members.status(me.client_url) is not None
            found = next_step(listed, me.peer_url, data=has_data(kit), running=running)
            if found is Step.READY:
                _write_config(kit, me, {me.node: me.peer_url}, new=False)
            if found in (Step.USE, Step.READY):
                return client_urls(listed)
            if found not in said:
                said.add(found)
                tell(_WORDS[found])
            await _do(found, kit, me, members, listed)
            raise Again("etcd-not-member", f"etcd here is not a voting member yet ({_WORDS[found]})")

        return await until(kit, step, "etcd-not-member")
    finally:
        await members.close()


_WORDS = {
    Step.WIPE: "removing data of an earlier membership in etcd",
    Step.ADD: "adding this node to etcd as a learner",
    Step.REMOVE: "removing the member of etcd that this node was: its data are gone",
    Step.START: f"starting {ETCD_UNIT}",
    Step.PROMOTE: "waiting until etcd here has everything, to give it a vote",
}


async def _do(step: Step, kit: Kit, me: Me, members: Members, listed: Sequence[Member]) -> None:
    own = own_member(listed, me.peer_url)
    if step is Step.WIPE:
        await remove_member_files(kit)
    elif step is Step.ADD:
        # What a failed start has left is no log, but something to stumble over.
        await remove_member_files(kit)
        await members.add_learner(me.peer_url)
    elif step is Step.START:
        await _start(kit, me, members, listed)
    elif own is None:
        raise AssertionError(f"{step} without a member")
    elif step is Step.REMOVE:
        await remove_member_files(kit)
        await members.remove(own.id)
    else:
        await members.promote(own.id)


async def _start(kit: Kit, me: Me, members: Members, listed: Sequence[Member]) -> None:
    """Start etcd, at first with the members as they are now; later with none but itself, so that an etcd that
    has lost its data finds nobody to start with: etcd would take it for the member that it was, which has
    forgotten how it voted. At its first start it compares them with the cluster's,
    and gives up if somebody else was added in between. Then it is started again with the new ones."""
    peers = {m.name or f"not-started-{m.id:x}": u for m in listed for u in m.peer_urls if u != me.peer_url}
    if has_data(kit):
        peers = {}
    changed = _write_config(kit, me, {**peers, me.node: me.peer_url}, new=False)
    await kit.services.install()
    if changed and await kit.services.active(ETCD_UNIT):
        await kit.services.restart(ETCD_UNIT)
    else:
        await kit.services.start(ETCD_UNIT, wait=False)
    # Nobody tells when another program begins to answer.
    for _ in range(int(kit.waits.start / kit.waits.pause)):
        if await members.status(me.client_url) is not None:
            return
        await asyncio.sleep(kit.waits.pause)


def _write_config(kit: Kit, me: Me, peers: dict[str, str], *, new: bool) -> bool:
    settings = etcd_config.MemberSettings(me.cluster, me.node, me.address, peers, new)
    text = etcd_config.render(settings, kit.layout)
    path = kit.layout.etcd_file
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write(path, text, 0o600)
    # As systemd would (StateDirectory); etcd insists on the mode.
    kit.layout.etcd_data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return True


def has_data(kit: Kit) -> bool:
    """Whether etcd has a log here: it has started since its data were last removed."""
    return any((kit.layout.etcd_data / "member" / "wal").glob("*.wal"))


async def remove_member_files(kit: Kit) -> None:
    """Stop etcd here and remove its settings and data."""
    await kit.services.stop(ETCD_UNIT)
    kit.layout.etcd_file.unlink(missing_ok=True)
    if kit.layout.etcd_data.exists():
        # Renamed first: half of a data folder is nothing that etcd should ever start on.
        dying = kit.layout.etcd_data.with_name("etcd.removed")
        shutil.rmtree(dying, ignore_errors=True)
        kit.layout.etcd_data.rename(dying)
    shutil.rmtree(kit.layout.etcd_data.with_name("etcd.removed"), ignore_errors=True)


async def refresh_endpoints(kit: Kit) -> bool:
    """Write into node.yaml where the store's members are now; whether that differed. Raises as
    :meth:`Members.list` does."""
    config = node_config.load(kit.layout.node_file)
    members = kit.members(config.etcd)
    try:
        found = client_urls(await members.list())
    finally:
        await members.close()
    return save_endpoints(kit, config, found)


def save_endpoints(kit: Kit, config: NodeConfig, endpoints: Sequence[str]) -> bool:
    """The same, with client URLs that are known; an own member first, as the nearest."""
    _, address = pki.names(kit.layout.certificates.certificate.read_bytes())
    own = url(address, CLIENT_PORT)
    ordered = tuple(sorted(endpoints, key=lambda e: (e != own, e)))
    if not ordered or ordered == config.etcd:
        return False
    node_config.save(config.model_copy(update={"etcd": ordered}), kit.layout.node_file)
    return True


async def remove_from_etcd(kit: Kit, members: Members, number: int) -> None:
    """Remove a member, which etcd puts off while others have only just come back. :class:`Failed`
    ``etcd-not-left`` if it does not come about in time."""

    async def gone() -> None:
        if any(m.id == number for m in await members.list()):
            await members.remove(number)

    await until(kit, gone, LEFT)


async def until(kit: Kit, look: Callable[[], Awaitable[T]], code: str) -> T:
    """What ``look`` returns, once it neither asks to be called again nor meets an obstacle that passes."""

    def passing(error: BaseException) -> bool:
        return isinstance(error, Again) or (isinstance(error, HactlError) and error.code in _PASSING)

    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(passing),
            stop=stop_after_delay(kit.waits.etcd),
            wait=wait_fixed(kit.waits.pause),
            reraise=True,
        ):
            with attempt:
                return await look()
    except HactlError as error:
        if not passing(error):
            raise
        raise Failed(
            code,
            f"not done within {kit.waits.etcd:g} s: {error.message}",
            f"see journalctl -u {ETCD_UNIT}, and hactl cluster status on another node; then run it again",
        ) from error
    raise AssertionError("a retry loop that neither returned nor raised")
