"""Corosync and Pacemaker of this node: set up, kept as the cluster's nodes are, and taken down.

Every step looks at what is there, so that what was interrupted is simply done again. That ``corosync.conf``
is hactl's says that what ran here before was stopped, and set aside.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from hactl.cluster import corosync
from hactl.cluster.corosync import KEY_BYTES, Whose
from hactl.cluster.draft import Draft
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import COROSYNC_UNIT, PACEMAKER_UNIT, Layout, remove, write
from hactl.errors import Failed, Refused
from hactl.model.spec import ClusterSpec

PROGRAMS = {
    Path("/usr/sbin/corosync"): "corosync",
    Path("/usr/sbin/pacemakerd"): "pacemaker",
    Path("/usr/sbin/crm"): "crmsh",
}
"""What has to be installed, and the package that has it."""
STOP = 900.0
"""Seconds for Pacemaker to stop: it moves away what runs here first."""


async def obstacles(draft: Draft, kit: Kit, *, resumed: bool) -> AsyncIterator[Refused]:
    """What is in the way of Corosync and Pacemaker here; nothing is changed."""
    for path, package in PROGRAMS.items():
        if not kit.machine.has_program(path):
            yield Refused("corosync-missing", f"there is no {path}", f"install {package}")
    owner = corosync.whose(read(kit.layout))
    if owner is Whose.SOMEBODY:
        yield Refused(
            "corosync-foreign",
            f"{kit.layout.corosync_file} is of a cluster that hactl did not make",
            "take this machine out of that cluster and remove the file; or do without: --without-pacemaker",
        )
    elif not resumed and _has_resources(kit.layout):
        yield Refused(
            "pacemaker-foreign",
            f"Pacemaker has resources of its own here, see {kit.layout.cib / 'cib.xml'}",
            "remove them: crm configure erase; or do without: --without-pacemaker",
        )
    if resumed or owner is Whose.HACTL:
        return
    addresses = dict.fromkeys((draft.addresses.cluster, draft.addresses.replication))
    for number, address in enumerate(addresses):
        if kit.machine.in_use(address, corosync.PORT + number, udp=True):
            yield Refused(
                "port-in-use",
                f"something uses {address} UDP port {corosync.PORT + number}, which is for Corosync",
                f"see what it is and stop it: ss -lunp sport = :{corosync.PORT + number}",
            )


def forget_earlier(layout: Layout) -> None:
    """Let nothing of an earlier cluster of hactl's on this machine pass for this one's."""
    remove(layout.corosync_key)
    if corosync.whose(read(layout)) is Whose.HACTL:
        remove(layout.corosync_file)


def make_key(kit: Kit) -> None:
    """Make the key that all nodes will share, unless that was done."""
    if not kit.layout.corosync_key.exists():
        save_key(kit.layout, kit.random(KEY_BYTES))


def save_key(layout: Layout, key: bytes) -> None:
    """Put the key in place, for root alone."""
    write(layout.corosync_key, key, 0o400)


async def set_up(kit: Kit, cluster: ClusterSpec, tell: Tell) -> None:
    """See that Corosync runs here with the cluster's nodes. :class:`Refused` ``corosync-key`` or
    ``corosync-foreign`` if that cannot be, and as :class:`hactl.cluster.services.Services` raises."""
    refuse_unusable(kit.layout)
    if corosync.whose(read(kit.layout)) is not Whose.HACTL:
        if await kit.services.active(COROSYNC_UNIT):
            tell(f"stopping {PACEMAKER_UNIT} and {COROSYNC_UNIT}, which run as their packages were installed")
        await kit.services.stop(PACEMAKER_UNIT, seconds=STOP)
        await kit.services.stop(COROSYNC_UNIT)
        # One of an earlier cluster may be of a higher generation, and would then become this cluster's.
        _set_aside_cib(kit.layout, tell)
        if kit.layout.corosync_file.exists():
            kit.layout.corosync_file.replace(kit.layout.corosync_before)
    write_settings(kit.layout, cluster)
    tell(f"starting {COROSYNC_UNIT}")
    await kit.services.start(COROSYNC_UNIT)
    await reload_if_needed(kit, cluster)


async def start_pacemaker(kit: Kit, tell: Tell) -> None:
    """See that Pacemaker runs here."""
    tell(f"starting {PACEMAKER_UNIT}")
    await kit.services.start(PACEMAKER_UNIT)


async def stop_pacemaker(kit: Kit, tell: Tell) -> None:
    """Stop Pacemaker in good order, so that the others know that nothing of it runs here any more; not if it
    is not of hactl's."""
    if corosync.whose(read(kit.layout)) is Whose.HACTL and await kit.services.known(PACEMAKER_UNIT):
        if await kit.services.active(PACEMAKER_UNIT):
            tell(f"stopping {PACEMAKER_UNIT}")
        await kit.services.stop(PACEMAKER_UNIT, seconds=STOP)


async def take_down(kit: Kit, tell: Tell) -> None:
    """Stop both, and have the files as they were before hactl's cluster."""
    layout = kit.layout
    if corosync.whose(read(layout)) is Whose.HACTL:
        await stop_pacemaker(kit, tell)
        tell(f"stopping {COROSYNC_UNIT}")
        await kit.services.stop(COROSYNC_UNIT)
        # The cluster's, which goes on without this machine.
        for file in _cib_files(layout):
            file.unlink()
        remove(layout.corosync_file)
    if layout.corosync_before.exists() and not layout.corosync_file.exists():
        layout.corosync_before.replace(layout.corosync_file)
    remove(layout.corosync_key)


def refuse_unusable(layout: Layout) -> None:
    """:class:`Refused` ``corosync-foreign`` or ``corosync-key``."""
    if corosync.whose(read(layout)) is Whose.SOMEBODY:
        raise Refused(
            "corosync-foreign",
            f"{layout.corosync_file} was changed to something that hactl did not write",
            "remove it: the agent writes it anew",
        )
    if not layout.corosync_key.exists():
        raise Refused(
            "corosync-key",
            f"there is no {layout.corosync_key}, which Corosync's nodes share",
            "copy it from another node (root's, mode 0400); or let this node leave and join again",
        )


def write_settings(layout: Layout, cluster: ClusterSpec) -> bool:
    """Have ``corosync.conf`` as the cluster's nodes are; whether it differed."""
    text = corosync.render(cluster, layout)
    if read(layout) == text:
        return False
    write(layout.corosync_file, text, 0o644)
    return True


async def reload_if_needed(kit: Kit, cluster: ClusterSpec) -> None:
    """Have corosync take up the settings that are written; :class:`Failed` ``corosync-reload`` if it does
    not."""
    wanted = corosync.wanted_keys(cluster)
    if await kit.ring.loaded() == wanted:
        return
    await kit.ring.reload()
    if await kit.ring.loaded() != wanted:
        raise Failed(
            "corosync-reload",
            "corosync goes on with the nodes it knew, not with those in its settings",
            "an address that changed is taken up at a restart only: stop Pacemaker here, restart corosync,"
            " start Pacemaker, one node after the other",
        )


async def forget_gone(kit: Kit, cluster: ClusterSpec) -> tuple[str, ...]:
    """Have Pacemaker forget nodes that are not the cluster's any more and not there; their names."""
    names = {n.name for n in cluster.nodes}
    # One that is there has just been let in, and the news of it are not here yet; or it is about to leave.
    gone = tuple(k.name for k in await kit.ring.known() if k.name not in names and not k.member)
    for name in gone:
        await kit.ring.forget(name)
    return gone


def read(layout: Layout) -> str | None:
    """``corosync.conf`` as it is; None: there is none."""
    try:
        return layout.corosync_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _has_resources(layout: Layout) -> bool:
    try:
        return "<primitive" in (layout.cib / "cib.xml").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False


def _cib_files(layout: Layout) -> list[Path]:
    return sorted(f for f in layout.cib.iterdir() if f.is_file()) if layout.cib.exists() else []


def _set_aside_cib(layout: Layout, tell: Tell) -> None:
    files = _cib_files(layout)
    if not files:
        return
    number = 1
    while (aside := layout.cib.with_name(f"cib.before-hactl-{number}")).exists():
        number += 1
    aside.mkdir(mode=0o700)
    for file in files:
        shutil.move(file, aside / file.name)
    tell(f"Pacemaker's configuration from before this cluster is now in {aside}")
