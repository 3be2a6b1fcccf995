"""What every fault happens to: a cluster that Pacemaker rules, a host that writes and holds a reservation."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lab import failover, story
from lab.api import Lab, Machine
from lab.watch import Watch
from tests.lab.test_reservations import reserved, seen_through_both, without_generation

SECONDS = 420
"""For what takes a machine's boot: its time is slow."""


@dataclass
class Scene:
    """``active`` is the node that is, ``standby`` the other one, when it begins. ``reservation``: what is
    seen through both paths. ``boots``: how often each node had been switched on."""

    lab: Lab
    load: story.Load
    watch: Watch
    active: str
    standby: str
    reservation: str
    boots: dict[str, int]

    @property
    def mine(self) -> Machine:
        """The machine that is active when it begins."""
        return self.lab[self.active]

    @property
    def other(self) -> Machine:
        """The other one with the data."""
        return self.lab[self.standby]

    def promoted(self, node: str) -> None:
        """Wait until Pacemaker has promoted r0 on a node, and its host goes on."""
        failover.wait_until(
            self.lab, f"r0 is promoted on {node}", lambda s: failover.promoted(s) == node, SECONDS
        )
        self.load.wait_for_progress(timeout=SECONDS)

    def fenced(self, *nodes: str) -> None:
        """Wait until these were switched off and on again by their BMCs, once; nothing else was."""
        for node in nodes:
            failover.wait_until_up(self.lab[node], self.boots[node] + 1, SECONDS)
            self.boots[node] += 1
        assert self.booted() == self.boots

    def fenced_late(self, node: str) -> None:
        """Wait until a node was switched off and on again by its BMC, and nobody is about to do so again.

        An attempt that Pacemaker has given up goes on in another node's fence agent. So it may happen once
        more, after the attempt that succeeded.
        """
        failover.wait_until_up(self.lab[node], self.boots[node] + 1, SECONDS)
        self.no_fencing()
        failover.wait_until(self.lab, "all are members again", failover.all_members, SECONDS)
        again = failover.boots(self.lab[node]) - self.boots[node]
        assert again in (1, 2)
        self.boots[node] += again
        assert self.booted() == self.boots

    def no_fencing(self) -> None:
        """Wait until nobody is being switched off: Pacemaker has no such order open, and no agent runs."""
        failover.wait_until(
            self.lab, "no order to fence", lambda s: all(f.state != "pending" for f in s.fencing), SECONDS
        )
        for machine in self.lab.nodes:
            if machine.state == "up":
                # -x would compare 15 characters, and the agent is a script: the interpreter has another name.
                machine.wait_until_succeeds("! pgrep -f '[/]fence_ipmilan'", timeout=SECONDS)

    def booted(self) -> dict[str, int]:
        """How often each node has been switched on."""
        return {m.name: failover.boots(m) for m in self.lab.nodes}

    def ends(self, *owners: str) -> None:
        """Everything is well again. These nodes have been active, in this order, never two at once; the host
        has lost nothing and still holds its reservation."""
        client = self.lab["c1"]
        failover.wait_until_well(self.lab, SECONDS)
        active = rests(self.lab)
        self.load.wait_for_progress()
        report = self.load.stop()
        assert report.error == 0
        assert report.writes > 0
        assert report.reads > 0
        assert self.watch.stop() == list(owners)
        assert active == owners[-1]
        story.wait_until_paths(client, active=active, lab=self.lab, timeout=SECONDS)
        assert without_generation(seen_through_both(self.lab)) == self.reservation
        assert self.booted() == self.boots


def rests(lab: Lab) -> str:
    """Wait until Pacemaker has nothing left to do although both nodes could be promoted; the active one."""
    for node in lab.nodes[:2]:
        score = "crm_attribute --node {} --name master-hactl-r0 --lifetime reboot --query --quiet"
        node.wait_until_succeeds(f'[ "$({score.format(node.name)})" -ge 10000 ]', timeout=SECONDS)
    lab.nodes[0].succeed(f"crm_resource --wait --timeout={SECONDS}s", timeout=SECONDS)
    return failover.wait_until_in_charge(lab, SECONDS)


def mend(lab: Lab) -> None:
    """Whatever a test has left: networks whole, every machine on."""
    lab.heal()
    for machine in lab.nodes:
        if machine.state == "frozen":
            machine.thaw()
        if machine.state == "panicked":
            machine.crash()
    end = time.monotonic() + SECONDS
    while any(m.state != "up" for m in lab.nodes):
        if time.monotonic() > end:
            raise TimeoutError(f"machines are {[m.state for m in lab.nodes]}")
        for machine in lab.nodes:
            if machine.state != "up":
                machine.start()


def wait_until_off(machine: Machine) -> None:
    """Wait until a machine has switched itself off."""
    end = time.monotonic() + SECONDS
    while machine.state != "off":
        if time.monotonic() > end:
            raise TimeoutError(f"{machine.name} is {machine.state}")
        time.sleep(0.2)


def reserve(lab: Lab) -> str:
    """Register both paths, one of which holds a reservation; what is then seen through both."""
    return without_generation(reserved(lab))


def begin(lab: Lab, load: story.Load, reservation: str) -> Scene:
    """The host writes, and the gates are watched."""
    boots = {m.name: failover.boots(m) for m in lab.nodes}
    active = story.active_node(lab)
    standby = "n1" if active == "n2" else "n2"
    scene = Scene(lab, load, Watch(lab), active, standby, reservation, boots)
    scene.watch.start()
    load.wait_for_progress()
    return scene
