"""The lab's networks: bridges and taps in the network namespace of the calling process."""

from __future__ import annotations

import json
import subprocess

from lab.layout import NETWORKS, MachineSpec


def _ip(*batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(batch).encode(), check=True)


class Networks:
    """Three bridges, a tap for each machine and network, and partitions of them.

    A cut puts the taps of some machines on a bridge of their own: links stay up, as with a failed switch, the
    machines cut together still reach each other, and nobody else reaches them.
    """

    def __init__(self, machines: tuple[MachineSpec, ...]) -> None:
        self.machines = {m.name: m for m in machines}
        self.cuts = 0

    def create(self) -> None:
        """Make everything, in a namespace that has nothing yet."""
        batch = ["link set lo up"]
        for network in NETWORKS:
            batch += self._bridge(network)
        _ip(*batch)
        for machine in self.machines.values():
            for network in machine.networks:
                tap = machine.tap(network)
                _ip(f"tuntap add {tap} mode tap", f"link set {tap} master {network} up")

    @staticmethod
    def _bridge(name: str) -> list[str]:
        # No spanning tree, no forwarding delay, no multicast snooping: a frame passes from the first moment on.
        return [
            f"link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            f"link set {name} up",
        ]

    def cut(self, network: str, names: list[str]) -> None:
        """Part these machines from the rest of a network."""
        if network not in NETWORKS:
            raise ValueError(f"no network {network!r}: there are {', '.join(NETWORKS)}")
        for name in names:
            if name not in self.machines:
                raise ValueError(f"no machine {name!r}: there are {', '.join(self.machines)}")
            if network not in self.machines[name].networks:
                raise ValueError(f"machine {name} is not on the {network} network")
        self.cuts += 1
        bridge = f"{network[:9]}-{self.cuts}"
        taps = [self.machines[name].tap(network) for name in names]
        _ip(*self._bridge(bridge), *(f"link set {tap} master {bridge}" for tap in taps))

    def heal(self) -> None:
        """Put every tap back on its network and remove the bridges of cuts."""
        _ip(*(f"link set {m.tap(n)} master {n}" for m in self.machines.values() for n in m.networks))
        shown = subprocess.run(["ip", "-json", "link", "show", "type", "bridge"], capture_output=True, check=True)
        extra = [link["ifname"] for link in json.loads(shown.stdout or b"[]") if link["ifname"] not in NETWORKS]
        if extra:
            _ip(*(f"link del {name}" for name in extra))

    def partitions(self) -> dict[str, str]:
        """Tap of every machine that is cut off → bridge it is on."""
        shown = subprocess.run(["ip", "-json", "link", "show"], capture_output=True, check=True)
        masters = {link["ifname"]: link.get("master", "") for link in json.loads(shown.stdout)}
        taps = [(m.tap(n), n) for m in self.machines.values() for n in m.networks]
        return {tap: masters.get(tap, "") for tap, network in taps if masters.get(tap) != network}
