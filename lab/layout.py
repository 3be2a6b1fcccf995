"""Which machines a lab has, and their addresses: pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NETWORKS = ("cluster", "replication", "storage")
CLIENT_INDEX = 11
BMC = "bmc"
"""Where a network is named, this stands for the BMCs: they may be cut off, too."""
BMC_NETWORK = "cluster"
"""The network that BMCs are on."""
BMC_USER = "fence"


class Kind(StrEnum):
    """What runs a machine."""

    UML = "uml"
    TCG = "qemu-tcg"
    KVM = "qemu-kvm"


@dataclass(frozen=True)
class MachineSpec:
    """One machine: a storage node (``n1``) or a client (``c1``)."""

    name: str
    index: int
    image: str
    networks: tuple[str, ...]
    memory: int = 1024
    data_size: int = 1 << 30
    """Bytes of the disk for replicas; 0 for none."""

    def addresses(self, network: str) -> tuple[str, ...]:
        """IPv4 and IPv6 address with prefix length."""
        number = NETWORKS.index(network) + 1
        return f"10.77.{number}.{self.index}/24", f"fd77:{number}::{self.index:x}/64"

    def mac(self, network: str) -> str:
        """A locally administered MAC address, the same in every lab (each has a network namespace of its
        own)."""
        return f"52:54:00:77:{NETWORKS.index(network) + 1:02x}:{self.index:02x}"

    def tap(self, network: str) -> str:
        """Name of the tap device, unique in the lab's namespace."""
        return f"{self.name}-{network[0]}"

    @property
    def bmc_address(self) -> str:
        """IPv4 address of its BMC, with prefix length."""
        return f"10.77.{NETWORKS.index(BMC_NETWORK) + 1}.{100 + self.index}/24"

    @property
    def bmc_port(self) -> str:
        """Name of the interface that its BMC hangs on, unique in the lab's namespace."""
        return f"{self.name}-{BMC}"

    @property
    def ports(self) -> dict[str, tuple[str, str]]:
        """What of it may be cut off, a network's name or ``bmc`` → interface in the lab's namespace, and the
        bridge where that belongs."""
        return {**{n: (self.tap(n), n) for n in self.networks}, BMC: (self.bmc_port, BMC_NETWORK)}

    def command_line(self, machines: tuple[MachineSpec, ...]) -> str:
        """The ``lab.*`` words of the kernel's command line: see lab/guest/control.py."""
        net = ";".join(",".join(self.addresses(n)) for n in self.networks)
        hosts = ",".join(f"{m.name}@{m.addresses(m.networks[0])[0].partition('/')[0]}" for m in machines)
        return f"lab.name={self.name} lab.net={net} lab.hosts={hosts}"


def machines(nodes: int, client: bool = True) -> tuple[MachineSpec, ...]:
    """``nodes`` storage nodes and, if wanted, a client on the storage network."""
    specs = [MachineSpec(f"n{i}", i, "node", NETWORKS) for i in range(1, nodes + 1)]
    if client:
        specs.append(MachineSpec("c1", CLIENT_INDEX, "client", ("storage",), memory=768, data_size=0))
    return tuple(specs)
