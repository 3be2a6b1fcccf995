"""The agent's socket and the agents' TLS channel, on real sockets of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from hactl.agents import main, peer, serve
from hactl.agents.notify import notify
from hactl.errors import Refused, Unknown
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec, NodeSpec
from tests.unit.agents_world import NODES, R0, World, cluster, refused

Ask = Callable[..., Any]


@pytest.fixture
async def world() -> World:
    return await World().up()


@pytest.fixture
async def ask(world: World, tmp_path: Path) -> AsyncIterator[Ask]:
    path = tmp_path / "run" / "agent.sock"
    app = serve.Api(world.agents["n1"]).app(allowed=frozenset({os.getuid()}))
    runner = await serve.listen(app, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:

        async def call(method: str, url: str, **rest: Any) -> tuple[int, Any]:
            async with session.request(method, f"http://agent{url}", **rest) as answer:
                text = await answer.text()
                return answer.status, text if url == "/metrics" else await answer.json()

        yield call
    await runner.cleanup()


async def test_status_of_a_standby_and_of_an_active_node(ask: Ask) -> None:
    status, document = await ask("GET", "/v1/status")
    assert status == 200
    assert document["schema"] == 1
    assert document["node"] == "n1"
    assert document["peers"] == [{"node": "n2", "reachable": True}, {"node": "n3", "reachable": True}]
    assert await ask("POST", f"/v1/resources/{R0}/promote") != (409, None)
    _, document = await ask("GET", "/v1/status")
    (resource,) = document["resources"]
    assert {k: resource[k] for k in ("name", "role", "active_node", "reason", "pending")} == {
        "name": R0,
        "role": "active",
        "active_node": "n1",
        "reason": None,
        "pending": [],
    }
    assert resource["volumes"] == [
        {
            "number": 0,
            "lun": 0,
            "size": 64 << 20,
            "minor": 16,
            "gate": "open",
            "disk": "UpToDate",
            "alua": {"n1": "active/optimized", "n2": "standby", "n3": "standby"},
        }
    ]
    assert resource["connections"] == [
        {
            "peer": "n2",
            "state": "Connected",
            "role": "Secondary",
            "volumes": [{"number": 0, "disk": "UpToDate", "replication": "Established", "done": None}],
        }
    ]


async def test_orders_and_their_errors(ask: Ask, world: World) -> None:
    status, body = await ask("POST", f"/v1/resources/{R0}/switchover", json={"to": "n2"})
    assert (status, body["error"]["code"]) == (409, "not-active")
    status, body = await ask("POST", f"/v1/resources/{R0}/promote")
    assert (status, body["done"]) == (200, "promote")
    status, body = await ask("POST", "/v1/resources/r9/promote")
    assert (status, body["error"]["code"]) == (404, "unknown-resource")
    status, body = await ask("POST", f"/v1/resources/{R0}/switchover", data=b"no json")
    assert (status, body["error"]["code"]) == (409, "bad-request")
    status, body = await ask("POST", f"/v1/resources/{R0}/switchover", json={"to": 7})
    assert (status, body["error"]["code"]) == (409, "bad-request")
    status, body = await ask("GET", "/v1/nothing")
    assert (status, body["error"]["code"]) == (404, "http")
    status, body = await ask("POST", f"/v1/resources/{R0}/switchover", json={"to": "n2"})
    assert status == 200
    assert world.open_at() == ["n2"]
    status, body = await ask("POST", f"/v1/resources/{R0}/demote")
    assert status == 200
    assert world.open_at() == ["n2"]


async def test_the_whole_cluster_as_far_as_it_is_reached(ask: Ask, world: World) -> None:
    await ask("POST", f"/v1/resources/{R0}/promote")
    world.network.services.pop("n3")
    status, document = await ask("GET", "/v1/cluster")
    assert status == 200
    assert {k: document[k] for k in ("schema", "node", "cluster", "generation")} == {
        "schema": 1,
        "node": "n1",
        "cluster": "c",
        "generation": 0,
    }
    n1, n2, n3 = document["nodes"]
    assert (n1["node"], n1["reachable"], n1["error"]) == ("n1", True, None)
    assert n1["status"]["resources"][0]["role"] == "active"
    assert n2["status"]["node"] == "n2"
    assert (n3["reachable"], n3["status"], n3["error"]["code"]) == (False, None, "peer-unreachable")
    (resource,) = document["resources"]
    assert resource["active"] == ["n1"]
    assert resource["replicas"] == ["n1", "n2"]
    assert "password" not in json.dumps(document)


async def test_orders_for_other_nodes(ask: Ask, world: World) -> None:
    status, body = await ask("POST", f"/v1/resources/{R0}/promote?node=n2")
    assert (status, body["done"]) == (200, "promote")
    assert world.open_at() == ["n2"]
    status, body = await ask("POST", f"/v1/resources/{R0}/demote?node=n2")
    assert status == 200
    assert world.open_at() == []
    status, body = await ask("POST", f"/v1/resources/{R0}/promote?node=n1")
    assert status == 200
    assert world.open_at() == ["n1"]
    world.network.services.pop("n2")
    status, body = await ask("POST", f"/v1/resources/{R0}/promote?node=n2")
    assert (status, body["error"]["code"]) == (409, "peer-unreachable")
    status, body = await ask("POST", f"/v1/resources/{R0}/promote?node=n9")
    assert (status, body["error"]["code"]) == (409, "unknown-node")


async def test_an_error_in_hactl_is_logged_and_leaves_the_outcome_unknown(
    ask: Ask, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(resource: str) -> None:
        raise ZeroDivisionError("by zero")

    world.agents["n1"].promote = broken  # type: ignore[method-assign]  # a bug
    status, body = await ask("POST", f"/v1/resources/{R0}/promote")
    assert status == 504
    assert body["error"]["code"] == "internal-error"
    assert "ZeroDivisionError: by zero" in body["error"]["message"]
    assert "ZeroDivisionError" in capsys.readouterr().out


async def test_what_keeps_the_agent_from_its_work_is_in_its_status(ask: Ask, world: World) -> None:
    class Reporter:
        problem: str | None = "the store cannot be read"

    reporter = Reporter()
    world.agents["n1"].reporters.append(reporter)
    _, document = await ask("GET", "/v1/status")
    assert document["reason"] == "the store cannot be read"
    reporter.problem = None
    _, document = await ask("GET", "/v1/status")
    assert (document["reason"], document["leaving"], document["leftovers"]) == (None, [], [])


async def test_plan_tells_what_would_be_done(ask: Ask, world: World) -> None:
    assert await ask("GET", "/v1/plan") == (
        200,
        {"schema": 1, "node": "n1", "resources": [{"name": R0, "actions": [], "problems": []}]},
    )
    world.machines["n1"].fs.write("iscsi/iqn.2024-01.example:r0/tpgt_1/enable", "0")
    _, document = await ask("GET", "/v1/plan")
    (action,) = document["resources"][0]["actions"]
    assert action["action"] == "ApplyTarget"
    assert "enable" in action["description"]


async def test_metrics(ask: Ask) -> None:
    await ask("POST", f"/v1/resources/{R0}/promote")
    await ask("POST", "/v1/resources/r9/promote")
    _, text = await ask("GET", "/metrics")
    lines = text.splitlines()
    assert 'hactl_orders_total{order="promote",outcome="done"} 1.0' in lines
    assert 'hactl_orders_total{order="promote",outcome="refused"} 1.0' in lines
    assert 'hactl_resource_role{resource="r0",role="active"} 1.0' in lines
    assert 'hactl_volume_gate_open{resource="r0",volume="0"} 1.0' in lines


async def test_other_users_are_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    app = serve.Api(world.agents["n1"]).app(allowed=frozenset({os.getuid() + 1}))
    runner = await serve.listen(app, path)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://agent/v1/status") as answer,
    ):
        assert answer.status == 409
        assert (await answer.json())["error"]["code"] == "not-root"
    await runner.cleanup()


def issue(folder: Path, names: tuple[str, ...], ca: str = "ca") -> None:
    """Make a CA, unless it is there, and a certificate per name, with openssl(1)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", f"/CN={ca}")
    for name in names:
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key"),
            *("-out", f"{name}.crt", "-extfile", f"{name}.ext"),
        )


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    issue(folder, ("n1", "n2", "stranger"))
    issue(folder, ("impostor",), ca="other")
    return folder


def certificates(tls: Path, name: str) -> peer.Certificates:
    return peer.Certificates(tls / "ca.crt", tls / f"{name}.crt", tls / f"{name}.key")


def local(spec: ClusterSpec) -> ClusterSpec:
    """The same cluster with every node on this machine."""
    nodes = tuple(
        n.model_copy(
            update={"addresses": n.addresses.model_copy(update={"cluster": IPv4Address("127.0.0.1")})}
        )
        for n in spec.nodes
    )
    return spec.model_copy(update={"nodes": nodes})


def peers_of(world: World, shown: peer.Certificates, port: int) -> peer.HttpsPeers:
    """Who asks, showing these certificates, with every node on this machine."""
    peers = peer.HttpsPeers(shown.client(), port)
    peers.follow(local(world.spec))
    return peers


@pytest.fixture
async def port(world: World, tls: Path) -> AsyncIterator[int]:
    """n2's agent on a real TLS port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    app = peer.app(world.agents["n2"], lambda: world.agents["n2"].views.keys())
    runner = await peer.listen(app, IPv4Address("127.0.0.1"), certificates(tls, "n2").server(), number)
    yield number
    await runner.cleanup()


async def test_agents_talk_over_tls(world: World, tls: Path, port: int) -> None:
    peers = peers_of(world, certificates(tls, "n1"), port)
    assert (await peers.status("n2")) == await world.agents["n2"].on_status("n1")
    assert await peers.ready("n2", R0, "id-9") == ()
    assert await peers.abort("n2", R0, "id-0") is False
    error = await refused(peers.promote("n2", R0, "id-0"))
    assert (type(error), error.code) == (Refused, "switchover-aborted")
    await peers.promote("n2", R0, "id-1")
    assert world.open_at() == ["n2"]
    await peers.promote("n2", R0, "id-1")
    assert await peers.abort("n2", R0, "id-1") is True
    await peers.announce("n2", R0, "n2")
    assert set(await peers.status("n2", {R0})) == {R0}
    assert await peers.status("n2", {"r9"}) == {}
    document = await peers.document("n2")
    assert (document["node"], document["resources"][0]["role"]) == ("n2", "active")
    await peers.order("n2", R0, "demote")
    assert world.open_at() == []
    assert (await refused(peers.order("n2", R0, "dance"))).code == "bad-request"
    assert (await refused(peers.ready("n2", "r9", "id-9"))).code == "unknown-resource"
    await peers.close()


async def test_a_certificate_of_another_node_is_not_taken_for_it(world: World, tls: Path, port: int) -> None:
    peers = peers_of(world, certificates(tls, "n1"), port)
    # The port answers as n2; whoever asks for n3 must not believe it.
    assert (await refused(peers.status("n3"))).code == "peer-unreachable"
    await peers.close()


@pytest.mark.parametrize("name", ["stranger", "n2"])
async def test_only_other_nodes_are_let_in(world: World, tls: Path, port: int, name: str) -> None:
    peers = peers_of(world, certificates(tls, name), port)
    before = await world.seen()
    assert (await refused(peers.promote("n2", R0, "id-1"))).code == "not-a-node"
    assert await world.seen() == before
    await peers.close()


async def test_another_ca_is_not_let_in(world: World, tls: Path, port: int) -> None:
    peers = peers_of(world, certificates(tls, "impostor"), port)
    error = await refused(peers.promote("n2", R0, "id-1"))
    assert error.code in {"peer-lost", "peer-unreachable"}
    assert world.open_at() == []
    await peers.close()


async def test_peers_follow_the_cluster(world: World, tls: Path, port: int) -> None:
    peers = peers_of(world, certificates(tls, "n1"), port)
    assert await peers.ready("n2", R0, "id") == ()
    nodes = world.spec.nodes
    peers.follow(local(world.spec).model_copy(update={"nodes": nodes[:1]}))
    error = await refused(peers.ready("n2", R0, "id"))
    assert (type(error), error.code) == (Refused, "peer-unreachable")
    peers.follow(local(world.spec))
    # n1 is no node any more, and n2's agent has heard of it.
    agent = world.agents["n2"]
    r0 = world.spec.resource(R0).model_copy(update={"nodes": ("n2", "n3")})
    agent.update(Desired(world.spec.model_copy(update={"nodes": nodes[1:], "resources": (r0,)})))
    assert (await refused(peers.ready("n2", R0, "id"))).code == "not-a-node"
    await peers.close()


async def test_an_order_goes_on_when_nobody_waits_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    may, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may.wait()
        done.set()
        raise ZeroDivisionError("by zero")

    waiting = asyncio.create_task(peer._to_its_end(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not done.is_set()
    may.set()
    await done.wait()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "by zero" in capsys.readouterr().out


async def test_the_port_for_other_agents_follows_the_nodes_address(world: World, tls: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = world.agents["n2"]
    agent.update(Desired(local(world.spec)))
    listener = main.Listener(agent, certificates(tls, "n2").server(), port)
    await listener.follow()
    peers = peers_of(world, certificates(tls, "n1"), port)
    assert await peers.status("n2", {R0})

    def moved(address: str) -> ClusterSpec:
        def one(n: NodeSpec) -> NodeSpec:
            own = IPv4Address(address if n.name == "n2" else "127.0.0.1")
            return n.model_copy(update={"addresses": n.addresses.model_copy(update={"cluster": own})})

        return world.spec.model_copy(update={"nodes": tuple(map(one, world.spec.nodes))})

    agent.update(Desired(moved("127.0.0.2")))
    await listener.follow()
    await peers.close()
    assert (await refused(peers.status("n2", {R0}))).code == "peer-unreachable"
    peers.follow(moved("127.0.0.2"))
    assert await peers.status("n2", {R0})
    agent.update(Desired(moved("192.0.2.99")))
    await listener.follow()
    assert "cannot listen on 192.0.2.99" in agent.reasons()[0]
    agent.update(Desired(moved("127.0.0.2")))
    await listener.follow()
    assert agent.reasons() == ()
    assert await peers.status("n2", {R0})
    await peers.close()
    await listener.close()


async def test_nobody_there_is_certain_but_a_hang_up_is_not(world: World, tls: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificates(tls, "n2").server())
    port = server.sockets[0].getsockname()[1]
    peers = peers_of(world, certificates(tls, "n1"), port)
    error = await refused(peers.promote("n2", R0, "id-1"))
    assert (type(error), error.code) == (Unknown, "peer-lost")
    server.close()
    await server.wait_closed()
    error = await refused(peers.promote("n2", R0, "id-1"))
    assert (type(error), error.code) == (Refused, "peer-unreachable")
    await peers.close()


async def test_strange_answers_leave_the_outcome_unknown(world: World, tls: Path) -> None:
    async def strange(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", strange)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runner = await peer.listen(app, IPv4Address("127.0.0.1"), certificates(tls, "n2").server(), port)
    peers = peers_of(world, certificates(tls, "n1"), port)
    assert isinstance(await refused(peers.promote("n2", R0, "id")), Unknown)
    await peers.close()
    await runner.cleanup()


def test_certificates_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot use the certificates"):
        peer.Certificates(tmp_path / "a", tmp_path / "b", tmp_path / "c").server()


def test_the_oldest_tls_is_1_3(tls: Path) -> None:
    context = certificates(tls, "n1").server()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_notify_reaches_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(64) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


async def test_the_loop_ends_when_told_and_leaves_everything_as_it_is() -> None:
    world = await World(cluster()).up()
    await world.agents["n1"].promote(R0)
    await world.converge(2)
    before = await world.seen()
    stop = asyncio.Event()
    running = asyncio.create_task(main.keep(world.agents["n1"], stop))
    asyncio.get_running_loop().call_soon(stop.set)
    async with asyncio.timeout(5):
        await running
    assert await world.seen() == before


async def test_the_loop_follows_what_shall_be() -> None:
    world = await World(cluster()).up()
    agent = world.agents["n1"]
    told: asyncio.Queue[Desired] = asyncio.Queue()

    async def states() -> AsyncGenerator[Desired, None]:
        while True:
            yield await told.get()

    made = asyncio.Event()

    def note(node: str, step: str) -> bool:
        if world.machines["n1"].fs.exists("iscsi/iqn.2024-01.example:r1/tpgt_1/np/203.0.113.1:3260"):
            made.set()
        return False

    world.kill = note
    followed = asyncio.Event()

    async def follow() -> None:
        followed.set()

    stop = asyncio.Event()
    running = asyncio.create_task(main.keep(agent, stop, states(), follow))
    (r0,) = world.spec.resources
    r1 = r0.model_copy(update={"name": "r1", "id": 2, "iqn": "iqn.2024-01.example:r1"})
    disks = dict.fromkeys(("n1", "n2"), "/dev/vd9")
    r1 = r1.model_copy(update={"volumes": (r0.volumes[0].model_copy(update={"disks": disks}),)})
    told.put_nowait(Desired(world.spec.model_copy(update={"resources": (r0, r1)}), generation=7))
    async with asyncio.timeout(10):
        await made.wait()
        await followed.wait()
    assert agent.desired.generation == 7
    stop.set()
    async with asyncio.timeout(5):
        await running


async def test_the_loop_wakes_by_itself_when_drbd_changes() -> None:
    world = World(cluster())
    for node in NODES:
        await world.start(node)
    skipped = asyncio.Event()

    def note(node: str, step: str) -> bool:
        if step == "SkipInitialSync":
            skipped.set()
        return False

    world.kill = note
    stop = asyncio.Event()
    running = [asyncio.create_task(main.keep(world.agents[n], stop)) for n in NODES]
    async with asyncio.timeout(20):
        await skipped.wait()
    stop.set()
    await asyncio.gather(*running)
