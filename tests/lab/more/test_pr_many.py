"""More registrations than fit a page, the other kind of reservation, and hosts that come back otherwise."""

from __future__ import annotations

import os

from hactl.pr_sync.answers import FullStatus, Keys
from hactl.pr_sync.commands import Command, Status
from hactl.pr_sync.model import apply
from hactl.pr_sync.parameters import Read, in_cdb
from hactl.pr_sync.state import Action, Nexus, State
from lab import story
from lab.api import Lab
from tests.lab.pr_world import ACCESS, INITIATORS, Step, drive, make_clean, nexus, out, register, rtpi

MANY = int(os.environ.get("HACTL_LAB_NEXUSES", "256"))
RESERVE6, RELEASE6 = {"cdb": "160000000000"}, {"cdb": "170000000000"}
CONFLICT = Status.RESERVATION_CONFLICT.value
ROOM = 65_535
"""Bytes asked for: what the field of the command can hold."""


def isid(number: int) -> str:
    """Of the random kind (RFC 7143 11.12.5)."""
    return f"80{number:06x}0000"


def everything(what: Read, tag: int) -> Step:
    """PERSISTENT RESERVE IN with room for all of it."""
    return {"cdb": in_cdb(what, ROOM).hex(), "in": ROOM, "tag": tag}


def seen(lab: Lab) -> list[tuple[Keys, FullStatus]]:
    """Keys and full status through each node."""
    found = []
    for node in ("n1", "n2"):
        one = nexus(2, node)
        run = drive(lab, {one: [everything(Read.KEYS, 1), everything(Read.FULL_STATUS, 2)]}).by_tag()
        found.append((Keys.decode(run[1].data), FullStatus.decode(run[2].data)))
    return found


def test_more_registrations_than_fit_a_page(hosts: Lab) -> None:
    make_clean(hosts)
    nexuses = [
        Nexus(INITIATORS[number % 2], isid(number), rtpi("n1" if number % 4 < 2 else "n2"))
        for number in range(MANY)
    ]
    # One after another: together each would wait for all others, longer than a host does.
    scripts = {
        one: [out(register(one, 1000 + number), tag=number, turn="register", alone=True)]
        for number, one in enumerate(nexuses)
    }
    run = drive(hosts, scripts, timeout=1800)
    assert run.lost == ()
    assert all(told.good for told in run.by_tag().values())
    assert len(run.by_tag()) == MANY
    through = seen(hosts)
    assert through[0] == through[1]
    assert sorted(through[0][0].keys) == [1000 + number for number in range(MANY)]
    hosts["n1"].succeed(f"hactl switchover r0 --to {story.standby_node(hosts)}")
    hosts["n2"].succeed("systemctl restart hactl-agent")
    story.wait_until_settled(hosts)
    assert seen(hosts) == through
    holder = nexuses[0]
    ended = drive(hosts, {holder: [out(Command(holder, Action.CLEAR, 1000), tag=1)]})
    assert ended.by_tag()[1].good
    assert [keys.keys for keys, _ in seen(hosts)] == [(), ()]


def test_a_host_that_comes_back_under_another_isid_is_another_nexus(hosts: Lab) -> None:
    make_clean(hosts)
    one = Nexus(INITIATORS[0], isid(1), rtpi("n1"))
    other = Nexus(INITIATORS[0], isid(2), rtpi("n1"))
    drive(hosts, {one: [out(register(one, 5))]})
    refused = drive(hosts, {other: [out(Command(other, Action.CLEAR, 5), tag=1)]}).by_tag()[1]
    assert refused.outcome == apply(State(), Command(other, Action.CLEAR, 5), ACCESS)[0]
    assert not refused.good
    # The same one is registered still.
    assert drive(hosts, {one: [out(Command(one, Action.CLEAR, 5), tag=1)]}).by_tag()[1].good


def test_the_older_kind_of_reservation_and_registrations_exclude_each_other(hosts: Lab) -> None:
    make_clean(hosts)
    active, standby = story.active_node(hosts), story.standby_node(hosts)
    one, other, behind = nexus(0, active), nexus(1, active), nexus(1, standby)
    run = drive(
        hosts,
        {
            one: [{**RESERVE6, "tag": 1}, {"meet": "a"},
                  {"meet": "b"}, {**RELEASE6, "tag": 2}, {"meet": "c"}],
            other: [{"meet": "a"}, {**RESERVE6, "tag": 3}, out(register(other, 9), tag=4), {"meet": "b"},
                    {"meet": "c"}, out(register(other, 9), tag=5)],
            behind: [{"meet": "a"}, {**RESERVE6, "tag": 6}, {"meet": "b"}, {"meet": "c"}],
        },
    ).by_tag()  # fmt: skip
    assert run[1].good
    assert [run[tag].status for tag in (3, 4)] == [CONFLICT, CONFLICT]
    # Behind the standby port nobody gets one that the active node knows nothing of.
    assert not run[6].good
    assert run[2].good
    assert run[5].good
    # One who is not registered gets none beside registrations.
    assert drive(hosts, {one: [{**RESERVE6, "tag": 1}]}).by_tag()[1].status == CONFLICT
