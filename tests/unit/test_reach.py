"""Whether hosts reach a node: the judgement, and agents that ask on a storage network in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from hactl.agents.kit import Kit
from hactl.agents.memory_reach import MemoryProbes, MemoryStorageNetwork
from hactl.agents.metrics import Metrics
from hactl.agents.ocf_codes import ACTIVE, READY, Code, weighed
from hactl.agents.ocf_tell import tell_scores
from hactl.agents.reach import Network, Patience, Reach, Round, Verdict, after, fresh, network, trouble
from hactl.agents.reach_probes import echo_request, host_silence, is_reply, portal_faults
from hactl.agents.serve import Api
from hactl.model.spec import ClusterSpec, IpAddress
from hactl.pacemaker.difference import difference
from hactl.pacemaker.memory import MemoryPacemaker
from hactl.pacemaker.wanted import wanted
from tests.unit.agents_world import NODES, R0, World, active, cluster
from tests.unit.test_ocf_agent import RECURRING, Ruled, charged

PORTALS = {node: ip_address(f"203.0.113.{i}") for i, node in enumerate(NODES, 1)}
HOST = ip_address("203.0.113.100")
GATEWAY = ip_address("203.0.113.254")
P1 = PORTALS["n1"]
LIMITS = Patience()


# The judgement


def rounds(reach: Reach, found: Sequence[Round]) -> Reach:
    for one in found:
        reach = after(reach, one)
    return reach


def answered(*moments: float) -> list[Round]:
    return [Round(at, 1, 2, frozenset({P1})) for at in moments]


def silent(*moments: float, **parts: object) -> list[Round]:
    return [replace(Round(at, 1, 2), **parts) for at in moments]  # type: ignore[arg-type]  # fields of Round


DOWN = ((P1, "is on no interface"),)


def test_one_answer_is_enough_to_begin_with() -> None:
    assert fresh(0).verdict is Verdict.UNKNOWN
    assert rounds(fresh(0), answered(1)).verdict is Verdict.REACHABLE


def test_isolated_when_nothing_was_heard_for_long_enough() -> None:
    begun = rounds(fresh(0), answered(1))
    assert rounds(begun, silent(3, 5)).verdict is Verdict.REACHABLE
    later = rounds(begun, silent(3, 5, 7))
    assert (later.verdict, later.since) == (Verdict.SILENT, 7)
    assert rounds(begun, silent(3, 5, 7, faults=DOWN)).verdict is Verdict.DOWN
    # An answer in between begins it anew.
    assert rounds(begun, [*silent(3, 5), *answered(6), *silent(8, 10)]).verdict is Verdict.REACHABLE


def test_an_agent_that_did_not_get_the_processor_has_asked_nobody() -> None:
    begun = rounds(fresh(0), answered(1))
    assert rounds(begun, silent(61)).verdict is Verdict.REACHABLE
    assert rounds(begun, silent(61, 63)).verdict is Verdict.SILENT


def test_never_answered_is_isolated_too_unless_there_is_nobody_to_ask() -> None:
    assert rounds(fresh(0), silent(1, 3)).verdict is Verdict.UNKNOWN
    assert rounds(fresh(0), silent(1, 3, 5, 7)).verdict is Verdict.SILENT
    alone = silent(1, 3, 5, 7, asked=0)
    assert rounds(fresh(0), alone).verdict is Verdict.UNKNOWN
    assert rounds(fresh(0), [*alone, *silent(9, asked=0, faults=DOWN)]).verdict is Verdict.DOWN


def test_one_of_several_portals_is_enough() -> None:
    found = silent(1, 3, 5, 7, portals=2, faults=DOWN)
    assert rounds(fresh(0), found).verdict is Verdict.SILENT


def test_a_host_that_goes_on_sending_is_reason_not_to_leave_and_none_to_come() -> None:
    begun = rounds(fresh(0), answered(1))
    sending = [Round(at, 1, 2, heard=at - 0.5) for at in (3, 5, 7, 9)]
    assert rounds(begun, sending).verdict is Verdict.UNKNOWN
    # What was sent before the cut is no more than that, however often it is told.
    stale = [Round(at, 1, 2, heard=2 + at / 100) for at in (3, 5, 7, 9)]
    assert rounds(begun, stale).verdict is Verdict.SILENT


def test_well_again_only_after_a_while() -> None:
    cut = rounds(fresh(0), silent(1, 3, 5, 7))
    back = rounds(cut, answered(*range(9, 19)))
    assert back.verdict is Verdict.SILENT
    assert rounds(back, answered(19)).verdict is Verdict.REACHABLE
    # Not at a moment at which nobody answers, nor if it was cut again in between.
    assert rounds(back, silent(19)).verdict is Verdict.SILENT
    again = rounds(cut, [*answered(9), *silent(11, 13, 15), *answered(17)])
    assert rounds(again, answered(19, 21, 23, 25)).verdict is Verdict.SILENT
    assert rounds(again, answered(19, 21, 23, 25, 27)).verdict is Verdict.REACHABLE


def test_whom_a_node_asks() -> None:
    spec = cluster().model_copy(update={"storage_witnesses": (GATEWAY, P1)})
    asked = network(spec, "n1")
    assert asked == Network((P1,), (PORTALS["n2"], PORTALS["n3"]), (GATEWAY,))
    assert network(spec.model_copy(update={"resources": ()}), "n1") is None


def test_what_an_operator_is_told() -> None:
    asked = Network((P1,), (PORTALS["n2"],))
    cut = rounds(fresh(0), silent(1, 3, 5, 7))
    told = trouble(cut, asked, moves=True)
    assert told is not None
    assert "203.0.113.1: 203.0.113.2" in told
    assert "hactl witness add" in told
    assert "hactl switchover" not in told
    told = trouble(cut, replace(asked, witnesses=(GATEWAY,)), moves=False)
    assert told is not None
    assert "hactl witness add" not in told
    assert "hactl switchover" in told
    told = trouble(rounds(fresh(0), silent(1, 3, 5, 7, faults=DOWN)), asked, moves=True)
    assert told is not None
    assert "portal 203.0.113.1 is on no interface" in told
    assert trouble(rounds(fresh(0), answered(1)), asked, moves=True) is None


# Reading what programs print


def test_portals_and_their_interfaces() -> None:
    told = """[
      {"ifname": "eth0", "flags": ["UP", "LOWER_UP"], "operstate": "UP",
       "addr_info": [{"local": "203.0.113.1"}, {"local": "fd00::1"}]},
      {"ifname": "eth1", "flags": ["NO-CARRIER", "UP"], "operstate": "DOWN",
       "addr_info": [{"local": "203.0.113.2"}]},
      {"ifname": "eth2", "flags": [], "operstate": "UNKNOWN", "addr_info": [{"local": "203.0.113.3"}]},
      {"ifname": "dummy0", "flags": ["UP"], "operstate": "UNKNOWN", "addr_info": [{"local": "203.0.113.4"}]}
    ]"""
    asked = [ip_address("fd00::1"), *(ip_address(f"203.0.113.{n}") for n in range(1, 6))]
    assert {str(portal): why for portal, why in portal_faults(told, asked).items()} == {
        "203.0.113.2": "is on eth1, which has no link",
        "203.0.113.3": "is on eth2, which has no link",
        "203.0.113.5": "is on no interface",
    }
    assert portal_faults("[{}]", asked) == portal_faults("nonsense", asked) == {}


def test_sessions_and_how_long_hosts_have_been_silent() -> None:
    told = (
        "0 0 203.0.113.1:3260 203.0.113.100:40000 cubic rto:204 lastsnd:10 lastrcv:4100 lastack:5\n"
        "0 0 203.0.113.1:3260 203.0.113.100:40001 cubic rto:204 lastsnd:10 lastack:5\n"
        "0 0 203.0.113.1:3260 203.0.113.101:40001 cubic rto:204 lastrcv:90000\n"
        "0 0 203.0.113.9:3260 203.0.113.102:40001 cubic rto:204 lastrcv:1\n"
        "0 0 [fd00::1]:3260 [fd00::100]:40001\n"
        "odd\n"
    )
    found = host_silence(told, [P1, ip_address("fd00::1")])
    assert {str(host): silence for host, silence in found.items()} == {
        "203.0.113.100": 0.0,
        "203.0.113.101": 90.0,
        "fd00::100": math.inf,
    }


def test_echo_messages() -> None:
    token = bytes(range(16))
    request = echo_request(4, token)
    assert sum(int.from_bytes(request[i : i + 2]) for i in range(0, len(request), 2)) % 0xFFFF == 0
    header = bytes([0x46]) + bytes(23)
    reply = header + b"\0" + request[1:]
    assert is_reply(4, reply, token)
    assert not is_reply(4, header + request, token), "the question itself, which loopback gives back"
    assert not is_reply(4, reply, token[::-1])
    assert not is_reply(4, b"", token)
    request = echo_request(6, token)
    assert request[0] == 128
    assert is_reply(6, bytes([129]) + request[1:], token)
    assert not is_reply(6, request, token)


# Agents that ask


def portals_of(spec: ClusterSpec) -> dict[IpAddress, str]:
    return {a: n.name for n in spec.nodes for a in n.addresses.storage}


class Asking(Ruled):
    """The world with a storage network on which a host has a session with n1 and n2. Time stands still but in
    ``passes_by``."""

    def __init__(self, spec: ClusterSpec | None = None) -> None:
        super().__init__(spec)
        self.storage = MemoryStorageNetwork(
            {**portals_of(self.spec), HOST: "h1", GATEWAY: "gateway"},
            sessions={(PORTALS[n], HOST): 0.0 for n in ("n1", "n2")},
        )
        self.probes: dict[str, MemoryProbes] = {}
        self.wrapped: dict[str, MemoryPacemaker] = {}
        inner = self.wrap

        def wrap(node: str, kit: Kit) -> Kit:
            self.probes[node] = self.storage.probes(node)
            made = replace(inner(node, kit), storage=self.probes[node])
            assert isinstance(made.pacemaker, MemoryPacemaker)
            self.wrapped[node] = made.pacemaker
            return made

        self.wrap = wrap

    async def passes_by(self, seconds: float) -> None:
        """So much time, in which every agent asks as often as it does. A host that is cut off is silent."""
        for _ in range(round(seconds / LIMITS.period)):
            self.tick(LIMITS.period)
            for (portal, host), silence in self.storage.sessions.items():
                reached = self.storage.connected(portal, host)
                self.storage.sessions[portal, host] = 0.0 if reached else silence + LIMITS.period
            for node, agent in self.agents.items():
                await agent.storage.look(self.probes[node])

    def verdicts(self) -> dict[str, str]:
        return {node: agent.storage.verdict.value for node, agent in self.agents.items()}

    async def scores(self) -> dict[str, object]:
        return {n: (await self.do(n, "monitor", **RECURRING)).score for n in ("n1", "n2")}


async def serving() -> Asking:
    world = Asking()
    await world.promoted()
    await world.passes_by(2)
    assert set(world.verdicts().values()) == {"reachable"}
    assert await world.scores() == {"n1": ACTIVE, "n2": READY}
    return world


async def test_a_node_that_is_cut_off_scores_below_the_one_that_is_not() -> None:
    world = await serving()
    world.storage.apart = {"n1"}
    await world.passes_by(4)
    assert await world.scores() == {"n1": ACTIVE, "n2": READY}
    await world.passes_by(4)
    assert world.verdicts() == {"n1": "silent", "n2": "reachable", "n3": "reachable"}
    # The others may be as badly off, and about to find out.
    assert await world.scores() == {"n1": ACTIVE, "n2": READY}
    await world.passes_by(4)
    scores = await world.scores()
    assert scores == {"n1": weighed(ACTIVE, Verdict.SILENT), "n2": READY}
    assert (await world.do("n1", "monitor", **RECURRING)).code is Code.DEGRADED_PROMOTED
    assert "203.0.113.1" in str(world.agents["n1"].storage.problem)
    assert world.agents["n1"].storage.problem in world.agents["n1"].reasons()
    # So Pacemaker moves it, by a hand-over over the networks that are there.
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert world.open_at() == ["n2"]
    # Back again, it takes nothing back.
    world.storage.apart = set()
    await world.passes_by(30)
    assert set(world.verdicts().values()) == {"reachable"}
    assert await world.scores() == {"n1": READY, "n2": ACTIVE}
    assert world.agents["n1"].storage.problem is None


async def scored() -> Asking:
    """The same, and Pacemaker knows the scores and has promoted n1."""
    world = await serving()
    world.pacemaker.edit(difference(world.pacemaker.configuration, wanted(world.spec)).change)
    for node, score in (await world.scores()).items():
        assert isinstance(score, int)
        world.pacemaker.set_score("hactl-r0", node, score)
    assert world.pacemaker.promoted == {"hactl-r0": "n1"}
    return world


async def test_pacemaker_is_told_at_once() -> None:
    """Not only when it asks next."""
    world = await scored()
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    await world.agents["n1"].settled()
    assert world.pacemaker.promoted == {"hactl-r0": "n2"}
    # What Pacemaker cannot be told now is left to the monitors.
    world.pacemaker.scores.clear()
    world.wrapped["n1"].down = True
    await tell_scores(world.agents["n1"])
    assert world.pacemaker.scores == {}


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1")])
async def test_nothing_moves_when_one_node_after_the_other_is_cut_off(order: tuple[str, str]) -> None:
    world = await scored()
    moved: list[object] = []

    async def passes_by() -> None:
        await world.passes_by(2)
        for agent in world.agents.values():
            await agent.settled()
        moved.append(world.pacemaker.promoted["hactl-r0"])

    for node in (*order, "n3"):
        world.storage.unplugged[PORTALS[node]] = "is on eth1, which has no link"
        await passes_by()
    for _ in range(10):
        await passes_by()
    assert set(world.verdicts().values()) == {"down"}
    assert set(moved) == {"n1"}
    assert world.pacemaker.scores == {
        ("hactl-r0", "n1"): weighed(ACTIVE, Verdict.DOWN),
        ("hactl-r0", "n2"): weighed(READY, Verdict.DOWN),
    }
    # Nor when they are well again one after the other.
    for node in (*order, "n3"):
        del world.storage.unplugged[PORTALS[node]]
        await passes_by()
    for _ in range(10):
        await passes_by()
    assert set(world.verdicts().values()) == {"reachable"}
    assert set(moved) == {"n1"}
    assert world.pacemaker.scores == {("hactl-r0", "n1"): ACTIVE, ("hactl-r0", "n2"): READY}


async def test_where_all_are_cut_off_everything_stays() -> None:
    world = await serving()
    world.storage.unplugged = dict.fromkeys(world.storage.owners, "is on eth1, which has no link")
    await world.passes_by(20)
    assert set(world.verdicts().values()) == {"down"}
    scores = await world.scores()
    assert scores == {"n1": weighed(ACTIVE, Verdict.DOWN), "n2": weighed(READY, Verdict.DOWN)}


def two_nodes(*witnesses: IpAddress) -> ClusterSpec:
    """n3 has no portal there."""
    spec = charged()
    far = spec.node("n3").model_copy(
        update={
            "addresses": spec.node("n3").addresses.model_copy(update={"storage": (ip_address("fd00::3"),)})
        }
    )
    nodes = (*spec.nodes[:2], far)
    return spec.model_copy(update={"nodes": nodes, "storage_witnesses": witnesses})


async def test_two_portals_without_a_witness_stay_and_say_how_to_have_one() -> None:
    world = Asking(two_nodes())
    await world.promoted()
    world.storage.sessions.clear()
    await world.passes_by(2)
    assert world.verdicts()["n1"] == world.verdicts()["n2"] == "reachable"
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    assert world.verdicts()["n1"] == world.verdicts()["n2"] == "silent"
    assert await world.scores() == {n: weighed(s, Verdict.SILENT) for n, s in (("n1", ACTIVE), ("n2", READY))}
    assert "hactl witness add" in str(world.agents["n2"].storage.problem)


@pytest.mark.parametrize("witness", [True, False])
async def test_two_portals_and_somebody_else_to_ask(witness: bool) -> None:
    """A witness that is named, or a host that has a session."""
    world = Asking(two_nodes(*([GATEWAY] if witness else [])))
    await world.promoted()
    if witness:
        world.storage.sessions.clear()
    await world.passes_by(2)
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    assert (world.verdicts()["n1"], world.verdicts()["n2"]) == ("silent", "reachable")
    assert await world.scores() == {"n1": weighed(ACTIVE, Verdict.SILENT), "n2": READY}


async def test_hosts_that_are_served_keep_a_node_although_no_other_answers_it() -> None:
    world = await serving()
    world.storage.apart = {"n1", "h1"}
    await world.passes_by(30)
    assert world.verdicts()["n1"] == "reachable"
    # Nor if the hosts answer no ping, and just go on.
    world.storage.mute = {HOST}
    await world.passes_by(30)
    assert world.verdicts()["n1"] == "unknown"
    assert await world.scores() == {"n1": ACTIVE, "n2": READY}


async def test_where_ping_is_forbidden_a_refused_connection_is_an_answer() -> None:
    world = await serving()
    world.storage.mute = set(world.storage.owners)
    world.storage.sessions.clear()
    await world.passes_by(30)
    assert set(world.verdicts().values()) == {"reachable"}
    world.storage.closed = set(world.storage.owners)
    await world.passes_by(30)
    assert set(world.verdicts().values()) == {"silent"}


async def test_while_somebody_answers_nothing_else_is_asked() -> None:
    world = await serving()
    for probes in world.probes.values():
        probes.asked.clear()
    await world.passes_by(2)
    assert [p.asked for p in world.probes.values()] == [["echo"]] * 3


async def test_a_verdict_grows_old() -> None:
    world = await serving()
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    world.tick(LIMITS.stale + 1)
    assert world.verdicts()["n1"] == "unknown"
    assert world.agents["n1"].storage.problem is None


async def test_other_portals_begin_anew_and_without_any_resource_nobody_is_asked() -> None:
    world = await serving()
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    spec = two_nodes()
    moved = spec.node("n1").addresses.model_copy(update={"storage": (ip_address("203.0.113.51"),)})
    first = spec.node("n1").model_copy(update={"addresses": moved})
    world.update(spec.model_copy(update={"nodes": (first, *spec.nodes[1:])}))
    await world.passes_by(2)
    assert world.verdicts()["n1"] == "unknown"
    world.update(world.spec.model_copy(update={"resources": ()}))
    asked = len(world.probes["n1"].asked)
    await world.passes_by(20)
    assert world.verdicts()["n1"] == "unknown"
    assert len(world.probes["n1"].asked) == asked


async def test_status_and_metrics_say_it() -> None:
    world = await serving()
    document = await Api(world.agents["n1"]).status()
    assert document["storage"]["verdict"] == "reachable"
    assert document["storage"]["portals"] == [{"address": "203.0.113.1", "answered": True, "fault": None}]
    assert document["reason"] is None
    world.storage.unplugged = {P1: "is on eth1, which has no link"}
    await world.passes_by(20)
    document = await Api(world.agents["n1"]).status()
    assert document["storage"]["verdict"] == "down"
    assert document["storage"]["portals"][0]["fault"] == "is on eth1, which has no link"
    assert document["reason"] == document["storage"]["reason"]
    assert "eth1" in document["reason"]
    page = Metrics().render(document).decode()
    assert 'hactl_storage_network{verdict="down"} 1.0' in page
    assert 'hactl_storage_network{verdict="reachable"} 0.0' in page


async def test_without_pacemaker_it_is_only_told() -> None:
    world = Asking(cluster())
    await active(world)
    await world.passes_by(2)
    world.storage.apart = {"n1"}
    await world.passes_by(20)
    assert "hactl switchover" in str(world.agents["n1"].storage.problem)
    assert world.roles()["n1"] == "active"


async def test_where_nobody_asks_nothing_is_known_against_a_node() -> None:
    world = await active(World())
    assert world.agents["n1"].storage.verdict is Verdict.REACHABLE
    assert world.agents["n1"].storage.document()["seconds"] is None
    assert world.spec.resource(R0).nodes == NODES
