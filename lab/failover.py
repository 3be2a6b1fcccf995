"""Failover without an operator, in the lab: fence devices for its nodes, and what Pacemaker says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hactl.errors import Failed
from hactl.pacemaker import read
from hactl.pacemaker.protocol import State
from lab import story, stranger
from lab.api import Lab, Machine
from lab.errors import LabError

PRIMITIVE = "hactl-r0"
PASSWORD = Path("/root/bmc-password")


def ipmi(machine: Machine) -> str:
    """Parameters of fence_ipmilan for a machine's BMC, without the password."""
    # cipher: ipmi_sim does not tell which ones it knows. power_wait: the agent asks whether it is off, and
    # need not wait before that.
    return f"ip={machine.bmc.address} username={machine.bmc.user} lanplus=1 cipher=3 power_wait=0"


def fence_devices(lab: Lab) -> None:
    """Tell the cluster how each of its nodes is switched off: by its BMC, with the stock agent."""
    first = lab.nodes[0]
    for node in lab.nodes:
        first.write(str(PASSWORD), node.bmc.password + "\n", 0o600)
        first.succeed(
            f"hactl fencing set {node.name} fence_ipmilan {ipmi(node)} --password-file {PASSWORD}",
            timeout=120,
        )
    first.succeed(f"rm {PASSWORD}")


def pacemaker(machine: Machine) -> State:
    """Pacemaker's view, asked at one node."""
    return read.read(machine.succeed(f"crm_mon {' '.join(read.ARGUMENTS)}"))


def wait_until(lab: Lab, what: str, holds: Callable[[State], bool], timeout: float = 300) -> State:
    """Wait for a view of Pacemaker's, asked at any node that is up."""
    end = time.monotonic() + timeout
    seen: State | str = "nothing"
    while time.monotonic() < end:
        try:
            seen = pacemaker(next(m for m in lab.nodes if m.state == "up"))
        except StopIteration:
            seen = "no node is up"
        except (LabError, Failed) as error:
            # Switched off while it was asked, or Pacemaker is still about to start.
            seen = str(error)
        else:
            if holds(seen):
                return seen
        time.sleep(0.3)
    raise TimeoutError(f"{what}: not so after {timeout:g} s: {seen}")


def all_members(state: State) -> bool:
    """Every node is there, and none is about to be fenced."""
    return state.quorum and all(m.online and m.clean and not m.pending for m in state.members)


def rules(state: State) -> bool:
    """Pacemaker rules r0, and has promoted it somewhere."""
    mine = [i for i in state.instances if i.primitive == PRIMITIVE and i.node is not None]
    return bool(mine) and all(i.managed and not i.failed for i in mine) and promoted(state) is not None


def promoted(state: State) -> str | None:
    """The node where r0 is promoted."""
    return state.promoted(PRIMITIVE)


def wait_until_in_charge(lab: Lab, timeout: float = 300) -> str:
    """Pacemaker rules r0 with all nodes in it; the active node, by its word and by the kernels'."""
    wait_until(lab, "Pacemaker rules r0", lambda s: all_members(s) and rules(s), timeout)
    story.wait_until_settled(lab, timeout)
    found = promoted(wait_until(lab, "Pacemaker rules r0", lambda s: all_members(s) and rules(s), timeout))
    assert found == story.active_node(lab)
    return found


def wait_until_well(lab: Lab, timeout: float = 300) -> str:
    """The same, and both disks have everything; the active node."""
    active = wait_until_in_charge(lab, timeout)
    lab[active].wait_until_succeeds(story.BOTH, timeout=timeout)
    return active


def boots(machine: Machine) -> int:
    """How often the machine has been switched on."""
    return next(int(m["boots"]) for m in machine.lab.status()["machines"] if m["name"] == machine.name)


def wait_until_up(machine: Machine, boot: int, timeout: float = 180) -> None:
    """Wait until somebody else has switched it on for the ``boot``-th time, and it answers."""
    end = time.monotonic() + timeout
    while boots(machine) < boot or machine.state != "up":
        if time.monotonic() > end:
            raise TimeoutError(f"{machine.name} is {machine.state} after {timeout:g} s")
        time.sleep(0.2)


def power_loss(lab: Lab, load: story.Load, number: int = 1, timeout: float = 180) -> story.Switchover:
    """Power off the active node and wait until the client's I/O goes on through the other one."""
    client = lab["c1"]
    lost, heir = story.active_node(lab), story.standby_node(lab)
    begin, started = story.clock(client), time.monotonic()
    lab[lost].crash()
    wait_until(lab, f"r0 is promoted on {heir}", lambda s: promoted(s) == heir, timeout)
    seconds = time.monotonic() - started
    load.wait_for_progress(timeout=timeout)
    return story.Switchover(number, heir, begin, story.clock(client), seconds, lost)


@dataclass(frozen=True)
class Tried:
    """What an initiator without a registration was told: how often its writes were let through, refused
    with RESERVATION CONFLICT, or failed otherwise."""

    written: int
    refused: int
    failed: int


class Stranger:
    """Tries to write through one node's port, from n3, until it is stopped. See :mod:`lab.stranger`."""

    HOST = "stranger"
    INITIATOR = f"{story.INITIATOR}-stranger"
    BLOCK = 900_000
    """Beyond what :class:`lab.story.Load` writes."""
    _PROGRAM = Path("/root/stranger.py")
    _SAID = "/run/stranger.json"

    def __init__(self, lab: Lab, node: str) -> None:
        self._machine = lab["n3"]
        self._portal = f"{story.portals(lab, node)[0]}:3260"

    @classmethod
    def admit(cls, lab: Lab) -> None:
        """Let it log in and see r0; again changes nothing."""
        first = lab.nodes[0]
        first.succeed(
            f"hactl host add {cls.HOST} --initiator {cls.INITIATOR} && hactl export r0 {cls.HOST}",
            timeout=120,
        )
        story.wait_until_settled(lab)

    def start(self) -> None:
        """Begin, instead of one that somebody has left."""
        self._machine.write(str(self._PROGRAM), Path(stranger.__file__).read_bytes())
        words = f"{self._PROGRAM} {self._portal} {story.TARGET} {self.INITIATOR} {self.BLOCK}"
        self._machine.execute("systemctl stop stranger")
        self._machine.succeed(
            "systemd-run --unit=stranger --collect --property=Type=exec"
            f" --property=StandardOutput=truncate:{self._SAID} /opt/hactl/venv/bin/python {words}"
        )

    def stop(self) -> Tried:
        """End it, and what it was told."""
        self._machine.succeed("systemctl stop stranger")
        said = json.loads(self._machine.succeed(f"cat {self._SAID}"))
        written, refused = said.pop("GOOD", 0), said.pop("RESERVATION_CONFLICT", 0)
        return Tried(written, refused, sum(said.values()))
