"""Has the store go on from this node's data alone, after the majority of its members was lost for good.
Interrupted anywhere, it is run again.

Why this loses nothing that a store of two members ever answered, and what keeps the old members from
disturbing the new store: docs/decisions/0014-recovering-the-store.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hactl.agents.source import read_copy
from hactl.cluster import checks, node_config, pki, unfinished
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import ETCD_UNIT
from hactl.cluster.members import Members, client_urls
from hactl.cluster.membership import (
    Again,
    Me,
    remove_from_etcd,
    remove_member_files,
    save_endpoints,
    until,
)
from hactl.cluster.node_config import NodeConfig
from hactl.cluster.recover_judge import judge
from hactl.cluster.recover_look import look, voices
from hactl.cluster.strike import expel, strike
from hactl.cluster.unfinished import Unfinished
from hactl.errors import Failed, HactlError, Refused
from hactl.model import records
from hactl.store import desired as desired_state
from hactl.store.protocol import UNREACHABLE, Put, Store

SCHEMA = 1


@dataclass(frozen=True)
class Recovered:
    """What came of it. ``aside``: the folder with the data as they were; ``resources``: that have a replica
    less; ``stay``: lost nodes that are still in the configuration, with the reason; ``behind``: by how many
    changes the store is older than what this node has seen of it."""

    cluster: str
    aside: Path
    resources: tuple[str, ...]
    stay: dict[str, str]
    behind: int


async def check(kit: Kit, lost: Sequence[str], rejoining: Sequence[str]) -> str:
    """Refuse where it is not right, see :mod:`hactl.cluster.recover_judge`; the name of the cluster."""
    checks.refuse_unless_root(kit.machine)
    config = node_config.load(kit.layout.node_file)
    begun = unfinished.load(kit.layout)
    if begun is not None and not _same(begun, _work(config, lost, rejoining)):
        named = [*(f" --lost {n}" for n in begun.lost), *(f" --rejoin {n}" for n in begun.rejoining)]
        raise Refused(
            "unfinished",
            f"hactl cluster {begun.what}{''.join(named)} was begun and is not finished on this machine",
            "run it again as it was",
        )
    if begun is not None and begun.made:
        return config.cluster
    members = kit.members(config.etcd)
    try:
        voting = await voices(members)
        if voting is None:
            judge(await look(kit, config, _me(kit, config), members), lost, rejoining)
        elif begun is None:
            raise _needless()
        elif voting & {*lost, *rejoining}:
            raise await _called_off(kit, begun)
    finally:
        await members.close()
    return config.cluster


async def recover(kit: Kit, tell: Tell, lost: Sequence[str], rejoining: Sequence[str] = ()) -> Recovered:
    """Have the store go on from here, without the nodes ``lost``, which are struck off the configuration, and
    without what the nodes ``rejoining`` had of it."""
    await check(kit, lost, rejoining)
    config = node_config.load(kit.layout.node_file)
    me = _me(kit, config)
    work = unfinished.load(kit.layout)
    if work is None:
        work = _work(config, lost, rejoining).model_copy(update={"aside": _free(kit).name})
        unfinished.save(kit.layout, work)
    members = kit.members([me.client_url])
    try:
        if not work.made:
            await _make(kit, me, members, work, tell)
            work = work.model_copy(update={"made": True})
            unfinished.save(kit.layout, work)
        tell(f"starting {ETCD_UNIT}")
        await kit.services.start(ETCD_UNIT, wait=False)
        await until(kit, lambda: _leads(members, me), "etcd-not-started")
        save_endpoints(kit, config, client_urls(await members.list()))
    finally:
        await members.close()
    config = node_config.load(kit.layout.node_file)
    store = kit.store(config)
    try:
        behind = await _behind(kit, store, config)
        tell(f"noting it in the store, and taking {', '.join(lost) or 'nobody'} out of the configuration")
        await _note(kit, store, config, work)
        # Whoever changes a reservation waits for these nodes until they are members no more.
        await expel(store, config, lost)
        resources, stay = await _strike(store, config, lost)
    finally:
        await store.close()
    unfinished.done(kit.layout)
    return Recovered(config.cluster, _aside(kit, work), resources, stay, behind)


async def _make(kit: Kit, me: Me, members: Members, work: Unfinished, tell: Tell) -> None:
    """Make the data here those of a store of this node alone; unless they are, and in use."""
    if (voting := await voices(members)) is not None:
        if voting & {*work.lost, *work.rejoining}:
            raise _needless()
        return
    tell(f"stopping {ETCD_UNIT}")
    await kit.services.stop(ETCD_UNIT)
    await kit.services.stop_alone()
    aside = _aside(kit, work)
    tell(f"keeping a copy of its data in {aside}")
    await asyncio.to_thread(_keep, kit.layout.etcd_data, aside)
    # Each time before it is forced, also if that was done before and cut short: by then it may have answered
    # others, and what it answered last might be thrown away.
    kit.log.commit(kit.layout.etcd_data)
    tell("starting etcd once, as a cluster of this node alone")
    await kit.services.start_alone()
    try:
        try:
            await until(kit, lambda: _leads(members, me), "etcd-not-started")
        except Failed as error:
            error.hint = f"see {kit.layout.recovery_log}; then run it again"
            raise
        for other in await members.list():
            # etcd leaves learners in that were members at its last snapshot.
            if me.peer_url not in other.peer_urls:
                await remove_from_etcd(kit, members, other.id)
    finally:
        await kit.services.stop_alone()


async def _called_off(kit: Kit, begun: Unfinished) -> Refused:
    """Nothing is unfinished any more: those who were given up are back, and a majority. The refusal."""
    error = _needless()
    if await kit.services.active(ETCD_UNIT):
        pass  # Somebody has started it, and it takes part.
    elif _aside(kit, begun).exists():
        # Its data may say by now that it is alone, or that something is committed which never was.
        await remove_member_files(kit)
        error.hint = "this node's part of the store was halfway, and is removed; run here: hactl cluster join"
    else:
        await kit.services.start(ETCD_UNIT, wait=False)
    unfinished.done(kit.layout)
    return error


def _needless() -> Refused:
    return Refused(
        "store-has-majority",
        "the store has a majority: nothing needs to be recovered",
        "a node that is lost is removed with: hactl cluster leave --lost NODE",
    )


def _aside(kit: Kit, work: Unfinished) -> Path:
    assert work.aside is not None, "chosen when it was begun"
    return kit.layout.etcd_data.with_name(work.aside)


async def _leads(members: Members, me: Me) -> None:
    status = await members.status(me.client_url)
    if status is None or not status.leader:
        raise Again("etcd-not-started", "etcd does not answer yet")


def _keep(data: Path, aside: Path) -> None:
    """A copy for root alone, on the disk, which has its name only when it is whole; none if there is one."""
    if aside.exists():
        return
    partial = aside.with_name(aside.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    shutil.copytree(data, partial, dirs_exist_ok=True)
    partial.chmod(0o700)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    partial.rename(aside)
    _sync(aside.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(kit: Kit) -> Path:
    number = 1
    while (aside := kit.layout.etcd_data.with_name(f"etcd.before-recovery-{number}")).exists():
        number += 1
    return aside


async def _strike(
    store: Store, config: NodeConfig, lost: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Each by itself: what keeps one in must not keep the others in."""
    resources: set[str] = set()
    stay: dict[str, str] = {}
    for name in lost:
        before = await desired_state.read(store, config.cluster)
        try:
            await strike(store, config, name, lost=True)
        except Refused as error:
            if error.code == UNREACHABLE:
                raise
            stay[name] = str(error)
        else:
            resources |= {r.name for r in before.cluster.resources if name in r.replicas}
    return tuple(sorted(resources)), stay


async def _note(kit: Kit, store: Store, config: NodeConfig, work: Unfinished) -> None:
    """What was done, for whoever wonders later; once for each recovery."""
    aside = _aside(kit, work).name
    key = f"{records.prefix(config.cluster)}recovered/{config.node}/{aside}"
    value = {
        "schema": SCHEMA,
        "at": kit.now().isoformat(timespec="seconds"),
        "node": config.node,
        "lost": list(work.lost),
        "rejoining": list(work.rejoining),
        "aside": aside,
    }
    if await store.get(key) is None:
        await store.commit([], [Put(key, json.dumps(value).encode())])


async def _behind(kit: Kit, store: Store, config: NodeConfig) -> int:
    try:
        copy = await asyncio.to_thread(read_copy, kit.layout.desired_copy, config.cluster)
    except HactlError:
        return 0
    if copy is None:
        return 0
    return max(0, copy.generation - (await desired_state.read(store, config.cluster)).generation)


def _work(config: NodeConfig, lost: Sequence[str], rejoining: Sequence[str]) -> Unfinished:
    return Unfinished(
        what="recover",
        cluster=config.cluster,
        lost=tuple(sorted(set(lost))),
        rejoining=tuple(sorted(set(rejoining))),
    )


def _same(one: Unfinished, other: Unfinished) -> bool:
    return (one.what, one.cluster, one.lost, one.rejoining) == (
        other.what,
        other.cluster,
        other.lost,
        other.rejoining,
    )


def _me(kit: Kit, config: NodeConfig) -> Me:
    _, address = pki.names(kit.layout.certificates.certificate.read_bytes())
    return Me(config.cluster, config.node, address)
