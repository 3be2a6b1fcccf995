"""``hactl pr``: what is registered, what happened, and how all of it is taken away."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from hactl.agents import serve
from hactl.agents.pr_document import reached_document
from hactl.cli.exits import Exit
from hactl.cli.pr_text import made
from hactl.errors import Failed, Refused, Unknown
from hactl.pr_sync.clear import Cleared, clear, clearing
from hactl.pr_sync.commands import Command, InitiatorPort, Move
from hactl.pr_sync.log import PrLog
from hactl.pr_sync.memory_kernel import SessionCut
from hactl.pr_sync.model import replay
from hactl.pr_sync.records import Entry, Head
from hactl.pr_sync.service import Reached
from hactl.pr_sync.state import Action, Nexus, State, Type
from hactl.pr_sync.sync import Limits
from hactl.pr_sync.units import Unit, units_of
from tests.unit import agents_world, pr_world
from tests.unit.cli_world import IQN, World
from tests.unit.fake_agent import FakeAgent, serving

OTHER = "iqn.1993-08.org.debian:01:c2"
AT = "2026-11-23T13:00:05.123+00:00"


class PrAgent(FakeAgent):
    """Knows how far nodes are, and takes orders to clear."""

    def __init__(self) -> None:
        super().__init__()
        self.reached: dict[str, dict[str, Any] | None] = {}
        self.cleared: list[dict[str, str]] = []

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/v1/resources/{name}/reservations/clear", self._clear)
        return app

    async def _clear(self, request: web.Request) -> web.Response:
        self.cleared.append(await request.json())
        told = [{"number": 0, "index": 9, "generation": 5, "changed": True}]
        told += [{"number": 1, "index": 0, "generation": 0, "changed": False}]
        return web.json_response({"done": "clear reservations", "seconds": 0.1, "volumes": told})

    def cluster(self) -> dict[str, Any]:
        document = super().cluster()
        for node in document["nodes"]:
            status = node["status"]
            reached = self.reached.get(node["node"])
            for resource in (status or {}).get("resources", ()):
                resource["reservations"] = {} if reached is None else {"0": reached}
        return document


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrAgent, Path]]:
    fake, socket = PrAgent(), tmp_path_factory.mktemp("s") / "a.sock"
    with serving(fake, socket):
        yield fake, socket


@pytest.fixture
def world(agent: tuple[PrAgent, Path]) -> World:
    made_here = World(socket=agent[1])
    made_here.ok("host", "add", "c1", "--initiator", IQN)
    made_here.ok("host", "add", "c2", "--initiator", OTHER)
    made_here.ok("resource", "create", "r0", "--size", "10G", "--no-wait", "--host", "c1", "--host", "c2")
    return made_here


def unit_of(world: World) -> Unit:
    cluster = world.desired.cluster
    return next(iter(units_of(cluster, cluster.resource("r0"))))


def nexus(unit: Unit, node: str, initiator: str = IQN, isid: str = "00023d000001") -> Nexus:
    return Nexus(initiator, isid, unit.port(node).rtpi)


def log(world: World, node: str, *steps: tuple[Command, ...] | None, members: tuple[str, ...] = ()) -> Head:
    """Entries by a node, and who is a member afterwards."""
    unit = unit_of(world)

    async def work() -> Head:
        kept = PrLog(world.store(), "lab", node, now=lambda: AT)
        head = await kept.head(unit.serial)
        for commands in steps:
            after = head.state if commands is None else replay(head.state, commands, unit.acting)
            head = await kept.append(unit.serial, head, commands, after)
        for name in members:
            await PrLog(world.store(), "lab", name).join(unit.serial, head)
        return head

    return asyncio.run(work())


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def register(at: Nexus, key: int, *, all_tg_pt: bool = False) -> tuple[Command, ...]:
    return (Command(at, Action.REGISTER, 0, key, all_tg_pt=all_tg_pt),)


def reserved(world: World) -> Unit:
    """c1 is registered on n1, c2 on n2; c1 holds a reservation; both nodes are members."""
    unit = unit_of(world)
    log(world, "n1", register(nexus(unit, "n1"), 0xA))
    log(world, "n2", register(nexus(unit, "n2", OTHER), 0xB))
    held = (Command(nexus(unit, "n1"), Action.RESERVE, 0xA, type=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY),)
    log(world, "n1", held, members=("n1", "n2"))
    return unit


# What there is


def test_who_is_registered_where_and_who_made_it(world: World, agent: tuple[PrAgent, Path]) -> None:
    unit = reserved(world)
    fake, _ = agent
    fake.reached = {
        "n1": {"index": 3, "generation": 2, "member": True, "problem": None},
        "n2": {"index": 2, "generation": 2, "member": True, "problem": "sessions are refused"},
    }
    document = world.json("pr", "show", "r0")
    assert (document["schema"], document["resource"]) == (1, "r0")
    (volume,) = document["volumes"]
    assert volume["registrations"][0] == {
        "initiator": IQN,
        "host": "c1",
        "isid": "00023d000001",
        "node": "n1",
        "rtpi": unit.port("n1").rtpi,
        "key": "0xa",
        "all_tg_pt": False,
        "made": {"node": "n1", "at": AT, "index": 1},
    }
    assert [(r["host"], r["made"]["node"]) for r in volume["registrations"]] == [("c1", "n1"), ("c2", "n2")]
    held = volume["reservation"]
    assert (held["type"], held["code"]) == ("Write Exclusive - Registrants Only", 5)
    assert [h["host"] for h in held["holders"]] == ["c1"]
    assert [(n["node"], n["member"], n["index"], n["behind"]) for n in volume["nodes"]] == [
        ("n1", True, 3, 0),
        ("n2", True, 2, 1),
    ]
    shown = lines(world.ok("pr", "show", "r0"))
    assert shown[0] == "r0/0: PRgeneration 2, registrations: 2, different keys: 2, log at entry 3"
    assert shown[1] == "reserved: Write Exclusive - Registrants Only, held by c1 at n1"
    assert shown[3] == (f"c1 {IQN} 00023d000001 0xa n1 {unit.port('n1').rtpi:#x} - 2026-11-23 13:00:05 on n1")
    assert "n1 up yes entry 3" in shown
    assert "n2 up yes entry 2, 1 behind" in shown
    assert "n2: sessions are refused" in shown


def test_nodes_that_are_not_reached_are_said_to_be_so(world: World, agent: tuple[PrAgent, Path]) -> None:
    reserved(world)
    fake, _ = agent
    fake.reached = {"n1": {"index": 3, "generation": 2, "member": True, "problem": None}}
    fake.peer_reachable = False
    assert "n2 not reached yes not known" in lines(world.ok("pr", "show", "r0"))
    # An older agent, which does not tell.
    fake.peer_reachable = True
    assert "n2 up yes not known" in lines(world.ok("pr", "show", "r0"))


def test_without_the_agent_the_log_is_shown_all_the_same(world: World) -> None:
    reserved(world)
    world.socket = Path("/nonexistent/agent.sock")
    result = world.cli("pr", "show", "r0", "--json")
    assert result.exit_code == Exit.OK
    assert "how far nodes are is not known" in result.stderr
    (volume,) = json.loads(result.stdout)["volumes"]
    assert len(volume["registrations"]) == 2
    assert [(n["reachable"], n["member"], n["behind"]) for n in volume["nodes"]] == 2 * [(False, True, None)]


def test_an_all_registrants_reservation_is_held_by_all(world: World) -> None:
    unit = unit_of(world)
    log(world, "n1", register(nexus(unit, "n1"), 1), register(nexus(unit, "n1", OTHER), 2))
    held = Command(nexus(unit, "n1"), Action.RESERVE, 1, type=Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
    log(world, "n1", (held,))
    (volume,) = world.json("pr", "show", "r0")["volumes"]
    assert [h["host"] for h in volume["reservation"]["holders"]] == ["c1", "c2"]
    assert "reserved: Exclusive Access - All Registrants, held by every registrant" in lines(
        world.ok("pr", "show", "r0")
    )


def test_nothing_is_registered_nothing_was_logged(world: World) -> None:
    (volume,) = world.json("pr", "show", "r0", "--volume", "0")["volumes"]
    assert (volume["registrations"], volume["reservation"], volume["index"]) == ([], None, 0)
    assert "not reserved" in lines(world.ok("pr", "show", "r0"))
    assert "r0/0: nothing was ever logged" in world.ok("pr", "history", "r0")


@pytest.mark.parametrize("command", ["show", "history", "clear"])
def test_what_cannot_be_shown_is_refused(world: World, command: str) -> None:
    assert world.code("pr", command, "r9") == "unknown-resource"
    assert world.code("pr", command, "r0", "--volume", "3") == "unknown-volume"


# What happened


def test_history_has_the_newest_last_in_the_standards_words(world: World) -> None:
    unit = reserved(world)
    a, b = nexus(unit, "n1"), nexus(unit, "n2", OTHER)
    log(world, "n2", (Command(b, Action.PREEMPT_AND_ABORT, 0xB, 0xA, type=Type.WRITE_EXCLUSIVE),))
    log(world, "n1", register(a, 0xC), None, clearing(7), ())
    found = lines(world.ok("pr", "history", "r0"))
    assert found[1] == "ENTRY TIME (UTC) ON NODE WHAT PRGENERATION"
    assert found[2:] == [
        "1 2026-11-23 13:00:05 n1 REGISTER by c1 at n1 key 0xa 1",
        "2 2026-11-23 13:00:05 n2 REGISTER by c2 at n2 key 0xb 2",
        "3 2026-11-23 13:00:05 n1 RESERVE by c1 at n1 key 0xa, Write Exclusive - Registrants Only 2",
        "4 2026-11-23 13:00:05 n2 PREEMPT AND ABORT by c2 at n2 key 0xb, of key 0xa, Write Exclusive 3",
        "5 2026-11-23 13:00:05 n1 REGISTER by c1 at n1 key 0xc 4",
        "6 2026-11-23 13:00:05 n1 state taken over: hosts lost their access, or the commands are not known 4",
        "7 2026-11-23 13:00:05 n1 CLEAR ordered with hactl pr clear on n1 6",
        "8 2026-11-23 13:00:05 n1 PRgeneration counted up 6",
    ]
    assert [line.split()[0] for line in lines(world.ok("pr", "history", "r0", "--limit", "2"))[2:]] == [
        "7",
        "8",
    ]
    (volume,) = world.json("pr", "history", "r0")["volumes"]
    reserve = volume["entries"][2]["commands"][0]
    assert {k: reserve[k] for k in ("action", "host", "node", "key", "type")} == {
        "action": "RESERVE",
        "host": "c1",
        "node": "n1",
        "key": "0xa",
        "type": "Write Exclusive - Registrants Only",
    }
    assert volume["entries"][5]["commands"] is None


def test_a_move_and_an_unregistration_in_words(world: World) -> None:
    unit = reserved(world)
    a, b = nexus(unit, "n1"), nexus(unit, "n2", OTHER)
    to = Move(InitiatorPort(b.initiator, b.isid), b.rtpi, unregister=True)
    log(world, "n1", (Command(a, Action.REGISTER_AND_MOVE, 0xA, 0xD, move=to),))
    log(world, "n2", (Command(b, Action.REGISTER, 0xD),))
    what = [e["what"] for e in world.json("pr", "history", "r0", "--limit", "2")["volumes"][0]["entries"]]
    assert what == [
        "REGISTER AND MOVE by c1 at n1 key 0xa, to c2 at n2 with key 0xd (unregisters)",
        "REGISTER by c2 at n2 (unregisters)",
    ]


def entry(index: int, *commands: Command) -> Entry:
    return Entry(index, str(index), "n1", AT, 0, commands)


def test_who_made_a_registration_as_far_as_the_log_tells() -> None:
    unit = pr_world.unit(2)
    first, second = unit.ports
    a, b = Nexus("a", "1", first.rtpi), Nexus("b", "2", second.rtpi)
    elsewhere = Nexus("a", "", second.rtpi)
    come, change = entry(1, *register(a, 1, all_tg_pt=True)), entry(2, Command(a, Action.REGISTER, 1, 2))
    other = entry(3, *register(b, 5))
    entries = [come, change, other]
    # A changed key is the same registration; ALL_TG_PT registers at all ports.
    assert made(entries, unit) == {a: come, elsewhere: come, b: other}
    gone = entry(4, Command(b, Action.PREEMPT, 5, 2, type=1))
    assert made([*entries, gone], unit) == {elsewhere: come, b: other}
    everybody = entry(4, Command(b, Action.PREEMPT_AND_ABORT, 5, 0, type=1))
    assert made([*entries, everybody], unit) == {b: other}
    left = entry(4, Command(b, Action.REGISTER, 5, 0))
    assert b not in made([*entries, left], unit)
    again = entry(5, *register(b, 6))
    assert made([*entries, left, again], unit)[b] == again
    assert made([*entries, entry(4, Command(a, Action.CLEAR, 2))], unit) == {}
    assert made([*entries, replace(entry(4), commands=None)], unit) == {}
    # Older than what is kept.
    assert made([other], unit) == {b: other}
    named = replace(register(b, 5)[0], spec_i_pt=(InitiatorPort("a", "1"),))
    assert set(made([entry(1, named)], unit)) == {b, a}


# Clearing


async def registered(w: pr_world.World) -> None:
    for host, node in enumerate(w.kernels):
        await w.kernels[node].send(pr_world.register(w.nexus(host, node), host + 1))
    held = Command(w.nexus(0, "n1"), Action.RESERVE, 1, type=Type.EXCLUSIVE_ACCESS)
    assert (await w.kernels["n1"].send(held)).good
    await w.settled()


async def cleared(w: pr_world.World, node: str, patience: float = 5.0) -> Cleared:
    async def applied(name: str, serial: str, index: int) -> None:
        if name == node:
            await w.network.syncs[node].reach(index)
        else:
            await w.network.of(node).applied(name, serial, index)

    return await clear(w.log(node), w.unit, applied, patience=patience, again=0.001)


@pytest.mark.parametrize("nodes", [2, 3])
async def test_clearing_leaves_nothing_on_any_node_and_nobody_is_cut(nodes: int) -> None:
    async with pr_world.world(nodes) as w:
        await registered(w)
        before = w.kernels["n1"].state.generation
        done = await cleared(w, "n2")
        # At once, without any waiting for what may come later.
        assert {k.state for k in w.kernels.values()} == {State(before + 2)}
        assert (done.generation, done.changed) == (before + 2, True)
        assert [k.rebuilt for k in w.kernels.values()] == [0] * nodes
        last = (await w.log("n1").entries(w.unit.serial, 0))[-1]
        assert (last.index, last.node) == (done.index, "n2")
        # Once more, there is nothing to do; and hosts may register again.
        assert await cleared(w, "n1") == replace(done, changed=False)
        assert (await w.kernels["n1"].send(pr_world.register(w.nexus(0, "n1"), 9))).good
        await w.settled()
        assert len({k.state for k in w.kernels.values()}) == 1


async def test_a_member_that_is_away_is_told_and_does_it_later() -> None:
    async with pr_world.world(3) as w:
        await registered(w)
        w.network.cut |= {frozenset(("n1", "n3"))}
        w.tasks["n3"].cancel()
        with pytest.raises(Unknown) as caught:
            await cleared(w, "n1", patience=0.1)
        assert caught.value.code == "pr-clear-unfinished"
        assert "n3: n3 cannot be reached" in caught.value.message
        assert "n2" not in caught.value.message
        assert [bool(w.kernels[n].state.registrations) for n in ("n1", "n2", "n3")] == [False, False, True]
        w.network.cut.clear()
        w.tasks["n3"] = asyncio.create_task(w.network.syncs["n3"].run())
        assert not (await cleared(w, "n1")).changed
        assert {k.state for k in w.kernels.values()} == {w.kernels["n1"].state}


async def test_a_member_that_is_said_to_be_gone_is_not_waited_for() -> None:
    async with pr_world.world(2) as w:
        await registered(w)
        w.network.cut |= {frozenset(("n1", "n2"))}
        work = asyncio.create_task(cleared(w, "n1"))
        await w.until(lambda: not w.kernels["n1"].state.registrations)
        assert not work.done()
        await w.log("n1").expel(w.unit.serial, "n2")
        assert (await work).changed


async def test_clearing_while_hosts_register_ends_with_the_same_everywhere() -> None:
    async with pr_world.world(3, Limits(answer=2, again=0.001)) as w:
        await registered(w)

        async def host(number: int) -> None:
            node = pr_world.NODES[number]
            for turn in range(15):
                try:
                    await w.kernels[node].send(pr_world.register(w.nexus(number, node, turn + 1), turn + 1))
                except SessionCut:
                    await asyncio.sleep(0)

        async def operator() -> None:
            for _ in range(8):
                await cleared(w, "n3")

        await asyncio.gather(host(0), host(1), host(2), operator())
        await w.settled()
        await cleared(w, "n1")
        await w.settled()
        assert {k.state.registrations == {} for k in w.kernels.values()} == {True}
        assert len({k.state for k in w.kernels.values()}) == 1


async def test_without_the_store_nothing_is_cleared() -> None:
    async with pr_world.world(2) as w:
        await registered(w)
        w.stores["n1"].reachable = False
        with pytest.raises(Refused) as caught:
            await cleared(w, "n1")
        assert caught.value.code == "store-unreachable"
        assert w.kernels["n2"].state.registrations


def test_clearing_asks_first(world: World, agent: tuple[PrAgent, Path]) -> None:
    fake, _ = agent
    reserved(world)
    assert world.code("pr", "clear", "r0") == "confirmation-needed"
    assert world.code("pr", "clear", "r0", "--yes-clear", "r1") == "confirmation-wrong"
    assert world.code("pr", "clear", "r0", terminal=True, text="r1\n") == "confirmation-wrong"
    assert fake.cleared == []
    result = world.cli("pr", "clear", "r0", terminal=True, text="r0\n")
    assert result.exit_code == Exit.OK, result.output
    assert "clearing r0 (2 registrations) takes away" in result.stderr
    assert lines(result.stdout)[-2:] == [
        "r0/0: cleared on all nodes (entry 9)",
        "r0/1: nothing was registered",
    ]
    assert (
        world.json("pr", "clear", "r0", "--volume", "0", "--yes-clear", "r0")["done"] == "clear reservations"
    )
    assert [order["volume"] for order in fake.cleared] == ["all", "0"]
    assert all(order["by"] for order in fake.cleared)


# The agent's side


class Order:
    """What an agent does when it is told to clear."""

    def __init__(self) -> None:
        self.units: list[str] = []
        self.fails = False

    async def clear(self, unit: Unit) -> Cleared:
        if self.fails:
            raise Unknown("pr-clear-unfinished", "n2 does not answer", "")
        self.units.append(unit.name)
        return Cleared(4, 2, changed=True)


async def test_the_agent_takes_the_order_and_tells_how_far_it_is(tmp_path: Path) -> None:
    nodes = await agents_world.World().up()
    agent, order = nodes.agents["n1"], Order()
    standing = agent.kit.standing
    standing.clear = order.clear
    told = {0: Reached(Head(7, "x", State(3)), member=True, problem=Failed("pr-busy", "others log in", ""))}
    standing.reached = lambda resource: reached_document(told) if resource == agents_world.R0 else {}
    app = serve.Api(agent).app(allowed=frozenset({os.getuid()}))
    runner = await serve.listen(app, tmp_path / "run" / "a.sock")
    connector = aiohttp.UnixConnector(str(tmp_path / "run" / "a.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(resource: str, **body: str) -> tuple[int, Any]:
            url = f"http://agent/v1/resources/{resource}/reservations/clear"
            async with session.post(url, json=body) as answer:
                return answer.status, await answer.json()

        status, answer = await post(agents_world.R0, volume="all", by="root")
        assert (status, answer["volumes"]) == (
            200,
            [{"number": 0, "index": 4, "generation": 2, "changed": True}],
        )
        assert order.units == [f"{agents_world.R0}/0"]
        status, answer = await post("r9", volume="all", by="root")
        assert (status, answer["error"]["code"]) == (404, "unknown-resource")
        status, answer = await post(agents_world.R0, volume="7", by="root")
        assert (status, answer["error"]["code"]) == (409, "unknown-volume")
        order.fails = True
        status, answer = await post(agents_world.R0, volume="0", by="root")
        assert (status, answer["error"]["code"]) == (504, "pr-clear-unfinished")
        async with session.get("http://agent/v1/status") as page:
            (resource,) = (await page.json())["resources"]
        assert resource["reservations"] == {
            "0": {"index": 7, "generation": 3, "member": True, "problem": "others log in"}
        }
    await runner.cleanup()
