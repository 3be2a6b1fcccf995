"""The lab's networks: bridges, taps and the BMCs' cables in the network namespace of the calling process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Container, Iterable
from pathlib import Path

from lab.layout import BMC, NETWORKS, MachineSpec


def bridge_commands(name: str) -> list[str]:
    """Commands for ``ip -batch`` that make a bridge.

    No spanning tree, no forwarding delay, no multicast snooping: a frame passes from the first moment on.
    """
    return [
        f"link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
        f"link set {name} up",
    ]


def create_commands(machines: Iterable[MachineSpec]) -> list[str]:
    """Commands for ``ip -batch`` that make all bridges and taps, in a namespace that has nothing yet."""
    batch = ["link set lo up"]
    for network in NETWORKS:
        batch += bridge_commands(network)
    for machine in machines:
        for network in machine.networks:
            tap = machine.tap(network)
            batch += [f"tuntap add {tap} mode tap", f"link set {tap} master {network} up"]
    return batch


def cut_commands(machines: dict[str, MachineSpec], network: str, names: list[str], number: int) -> list[str]:
    """Commands for ``ip -batch`` that put machines on a bridge of their own, the ``number``-th such one.

    ``bmc`` for a network stands for their BMCs.

    ValueError for a network or machine that does not exist, or a machine that is not on the network.
    """
    if network not in (*NETWORKS, BMC):
        raise ValueError(f"no network {network!r}: there are {', '.join(NETWORKS)}, and {BMC}")
    if not names:
        raise ValueError("no machine was named: say which ones to part from the rest")
    for name in names:
        if name not in machines:
            raise ValueError(f"no machine {name!r}: there are {', '.join(machines)}")
        if network not in machines[name].ports:
            raise ValueError(f"machine {name} is not on the {network} network")
    bridge = f"{network[:9]}-{number}"  # interface names have 15 characters at most
    return [
        *bridge_commands(bridge),
        *(f"link set {machines[n].ports[network][0]} master {bridge}" for n in names),
    ]


def heal_commands(
    machines: Iterable[MachineSpec], bridges: Iterable[str], links: Container[str]
) -> list[str]:
    """Commands for ``ip -batch`` that undo every cut, given the names of all bridges and of all interfaces
    there are: a BMC that ended has none."""
    ports = [port for m in machines for port in m.ports.values()]
    back = [f"link set {port} master {home}" for port, home in ports if port in links]
    return [*back, *(f"link del {name}" for name in bridges if name not in NETWORKS)]


def partitions(machines: Iterable[MachineSpec], masters: dict[str, str]) -> dict[str, str]:
    """Interface of everything that is cut off → bridge it is on. ``masters``: interface → bridge, or ""."""
    ports = [port for m in machines for port in m.ports.values()]
    return {port: masters.get(port, "") for port, home in ports if masters.get(port) != home}


def ip(batch: list[str]) -> None:
    """Have ``ip -batch`` do this, in this process's network namespace; RuntimeError with what it says."""
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(batch).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.decode(errors='replace').strip()}")


def _links() -> dict[str, str]:
    shown = subprocess.run(["ip", "-json", "link", "show"], capture_output=True, check=True)
    return {link["ifname"]: link.get("master", "") for link in json.loads(shown.stdout)}


def _bridges() -> list[str]:
    shown = subprocess.run(["ip", "-json", "link", "show", "type", "bridge"], capture_output=True, check=True)
    # Where nothing matches, some versions print nothing, others empty objects.
    return [link["ifname"] for link in json.loads(shown.stdout or b"[]") if link]


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
        # The bridges only pass frames on: without IPv6 the namespace itself has no address in any network.
        disable = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        if disable.exists():
            disable.write_text("1\n")
        ip(create_commands(self.machines.values()))

    def cut(self, network: str, names: list[str]) -> None:
        """Part these machines from the rest of a network, or their BMCs from everybody."""
        batch = cut_commands(self.machines, network, names, self.cuts + 1)
        self.cuts += 1
        ip(batch)

    def heal(self) -> None:
        """Put everything back on its network and remove the bridges of cuts."""
        ip(heal_commands(self.machines.values(), _bridges(), _links()))

    def partitions(self) -> dict[str, str]:
        """Interface of everything that is cut off → bridge it is on."""
        return partitions(self.machines.values(), _links())
