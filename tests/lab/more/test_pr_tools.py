"""The tools that hosts reserve with find what they would find at a single node: libiscsi's tests,
mpathpersist, and the fence agents for SCSI reservations."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hactl.pr_sync.answers import Keys
from hactl.pr_sync.commands import Status
from hactl.pr_sync.parameters import Read
from lab import story
from lab.api import Lab, Machine
from lab.reservations import path_of
from tests.lab.pr_world import INITIATORS, Run, Step, drive, make_clean, nexus, out, read, register
from tests.lab.test_reservations import seen, shown, without_generation

SUITES = (
    "PrinReadKeys",
    "PrinServiceactionRange",
    "PrinReportCapabilities",
    "ProutRegister",
    "ProutReserve",
    "ProutClear",
    "ProutPreempt",
    "Reserve6",
)
"""Of libiscsi's tests, those about reservations."""
PLAIN = "iqn.2026-11.io.hactl.lab:plain"
OWN, VICTIM = 0xA1, 0xB2
SETTINGS = "/etc/multipath/conf.d/reservation.conf"
WRITE_ONE: Step = {"cdb": "2a000003200000000100", "out": "00" * 512}
"""WRITE (10) of one block, 100 MiB into the unit."""


@pytest.fixture
def plain(hosts: Lab) -> Iterator[str]:
    """The portal of a target of plain LIO's, on n3, made with targetcli; hactl leaves it alone."""
    machine = hosts["n3"]
    # targetcli has LIO use another directory, where it does not make the folder that reservations need.
    machine.succeed("mkdir -p /etc/rtslib-fb-target/pr")
    group = f"/iscsi/{PLAIN}/tpg1"
    lines = [
        "/backstores/fileio create plain /var/tmp/plain.img 64M",
        f"/iscsi create {PLAIN}",
        f"{group}/luns create /backstores/fileio/plain",
        *(f"{group}/acls create {name}" for name in INITIATORS[:2]),
    ]
    machine.succeed("targetcli", stdin="\n".join([*lines, "exit", ""]).encode(), timeout=120)
    yield story.portals(hosts, "n3")[0]
    lines = [f"/iscsi delete {PLAIN}", "/backstores/fileio delete plain", "exit", ""]
    machine.succeed("targetcli", stdin="\n".join(lines).encode(), timeout=120)
    machine.succeed("rm /var/tmp/plain.img")


def outcomes(client: Machine, portal: str, target: str) -> dict[str, str]:
    """What libiscsi's tests of reservations say of a unit: ``passed`` or ``FAILED``."""
    found = {}
    for suite in SUITES:
        told = client.execute(
            f"iscsi-test-cu --dataloss --verbose -i {INITIATORS[0]} -I {INITIATORS[1]} -t SCSI.{suite}"
            f" iscsi://{portal}/{target}/0 2>&1",
            timeout=300,
        ).out
        cases = re.findall(r"Test: (\S+) \.\.\..*?(passed|FAILED)", told, re.DOTALL)
        assert cases, told
        found.update({f"{suite}.{case}": outcome for case, outcome in cases})
    return found


def test_libiscsis_tests_end_as_at_a_single_node(hosts: Lab, plain: str) -> None:
    client = hosts["c1"]
    expected = outcomes(client, plain, PLAIN)
    active = story.portals(hosts, story.active_node(hosts))[0]
    assert outcomes(client, active, story.TARGET) == expected
    # Most of them pass: there is something to compare.
    assert list(expected.values()).count("passed") > len(expected) / 2


@pytest.fixture
def persistent(hosts: Lab, device: str) -> Iterator[str]:
    """The client's device, with multipath told which key is its own."""
    client = hosts["c1"]
    make_clean(hosts)
    client.write(SETTINGS, f"defaults {{\n\treservation_key {OWN:#x}\n}}\n")
    client.succeed("multipathd reconfigure")
    story.wait_until_paths(client, active=story.active_node(hosts), lab=hosts)
    yield device
    client.succeed(f"rm {SETTINGS} && multipathd reconfigure")
    make_clean(hosts)


def test_mpathpersist(hosts: Lab, persistent: str, load: story.Load) -> None:
    client = hosts["c1"]
    ask = "mpathpersist --in --read-{} " + persistent
    order = "mpathpersist --out --{} " + persistent
    client.succeed(order.format(f"register --param-sark={OWN:x}"))
    # A path each, under one key.
    assert shown(state(hosts)) == [f"{OWN:#x}"] * 2
    client.succeed(order.format(f"reserve --param-rk={OWN:x} --prout-type=7"))
    held = without_generation(client.succeed(ask.format("reservation")))
    assert "Write Exclusive, all registrants" in held
    load.wait_for_progress()
    hosts["n1"].succeed(f"hactl switchover r0 --to {story.standby_node(hosts)}")
    load.wait_for_progress()
    # PRgeneration goes on: multipathd registers a path again when it comes back.
    assert without_generation(client.wait_until_succeeds(ask.format("reservation"))) == held
    client.succeed(order.format(f"release --param-rk={OWN:x} --prout-type=7"))
    client.succeed(order.format(f"clear --param-rk={OWN:x}"))
    assert shown(state(hosts)) == []
    load.wait_for_progress()


def state(lab: Lab) -> str:
    """What is seen through both nodes. Registrations made at the same moment may be listed in another
    order by each."""
    through = [seen(lab["c1"], path_of(lab, node)) for node in ("n1", "n2")]
    assert sorted(through[0].splitlines()) == sorted(through[1].splitlines())
    return through[0]


def victim(lab: Lab, step: Step) -> Run:
    """The other host does the same through each node."""
    return drive(lab, {nexus(1, node): [step] for node in ("n1", "n2")})


def active_by_the_first_path(lab: Lab, device: str) -> None:
    """fence_scsi ``off`` registers path by path, and has the first one preempt its own key: until the others
    are registered again, what is written through them is a conflict, at any array."""
    first = lab["c1"].succeed(f"ls -U /sys/block/$(basename $(realpath {device}))/slaves").split()[0]
    node = next(n for n in ("n1", "n2") if path_of(lab, n) == f"/dev/{first}")
    if story.active_node(lab) != node:
        lab["n1"].succeed(f"hactl switchover r0 --to {node}")
    story.wait_until_paths(lab["c1"], active=node, lab=lab)


@pytest.mark.parametrize("agent", ["fence_scsi", "fence_mpath"])
def test_a_fence_agent_shuts_the_other_host_out(
    hosts: Lab, persistent: str, load: story.Load, agent: str
) -> None:
    client = hosts["c1"]
    active_by_the_first_path(hosts, persistent)
    joining = {nexus(1, node): [out(register(nexus(1, node), VICTIM))] for node in ("n1", "n2")}
    assert all(told.good for told in drive(hosts, joining).told)
    order = f"{agent} --devices={persistent} --key={{:x}} --action={{}}"
    client.succeed("mkdir -p /run/cluster")
    client.succeed(order.format(OWN, "on"))
    assert "Write Exclusive, registrants only" in state(hosts)
    client.succeed(order.format(VICTIM, "status"))
    # Registered: through the active node's port it may write.
    before = victim(hosts, WRITE_ONE).told
    assert [told.good for told in before].count(True) == 1
    client.succeed(order.format(VICTIM, "off"), timeout=180)
    after = victim(hosts, WRITE_ONE).told
    assert Status.RESERVATION_CONFLICT.value in [told.status for told in after]
    assert not any(told.good for told in after)
    keys = [Keys.decode(told.data).keys for told in victim(hosts, read(Read.KEYS)).told]
    assert keys == [(OWN, OWN)] * 2
    load.wait_for_progress()
