"""What one would build without hactl, on the same machines: DRBD, LIO and a floating address under Pacemaker,
with the stock resource agents, and DRBD's own fencing by constraints. One path to the host.

The address comes last and goes first, so that a host never meets an address without a target, which would be
a refused connection. Where the address comes first that takes ``ocf:heartbeat:portblock``; the kernel of
user-mode Linux has no packet filter for it. Timers of Corosync, DRBD and open-iscsi are the defaults.
"""

from __future__ import annotations

import secrets

from hactl.pacemaker.protocol import State
from lab import failover, story
from lab.api import Lab, in_parallel

ADDRESS = "10.77.3.100"
TARGET = "iqn.2026-11.io.hactl.lab:stock"
CLONE = "ms_r0"
GROUP = "g_iscsi"
_REPLICAS = ("n1", "n2")

_DRBD = """\
resource r0 {
    net { protocol C; }
    disk { fencing resource-and-stonith; }
    handlers {
        fence-peer "/usr/lib/drbd/crm-fence-peer.sh";
        after-resync-target "/usr/lib/drbd/crm-unfence-peer.sh";
    }
    device /dev/drbd0 minor 0;
    disk %s;
    meta-disk internal;
%s}
"""

_COROSYNC = """\
totem {
    version: 2
    cluster_name: stock
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
}
nodelist {
%s}
quorum {
    provider: corosync_votequorum
}
logging {
    to_syslog: yes
}
"""

_CIB = f"""\
property stonith-enabled=true
primitive p_drbd ocf:linbit:drbd params drbd_resource=r0 \\
    op monitor interval=15s role=Promoted op monitor interval=30s role=Unpromoted
clone {CLONE} p_drbd meta promotable=true promoted-max=1 promoted-node-max=1 clone-max=2 clone-node-max=1 \\
    notify=true
primitive p_ip ocf:heartbeat:IPaddr2 params ip={ADDRESS} cidr_netmask=24 op monitor interval=10s
primitive p_target ocf:heartbeat:iSCSITarget params iqn={TARGET} implementation=lio-t \\
    portals=0.0.0.0:3260 allowed_initiators={story.INITIATOR} op monitor interval=10s
primitive p_lun ocf:heartbeat:iSCSILogicalUnit params target_iqn={TARGET} lun=0 path=/dev/drbd0 \\
    implementation=lio-t allowed_initiators={story.INITIATOR} op monitor interval=10s
group {GROUP} p_target p_lun p_ip
colocation with_drbd inf: {GROUP} {CLONE}:Promoted
order after_drbd Mandatory: {CLONE}:promote {GROUP}:start
location not_on_n3 {CLONE} -inf: n3
location group_not_on_n3 {GROUP} -inf: n3
"""


def build(lab: Lab) -> None:
    """The whole cluster, from nodes with nothing configured to a target that answers."""
    key = secrets.token_bytes(256)
    nodes = "".join(_node(lab, number, machine.name) for number, machine in enumerate(lab.nodes, 1))
    ons = "".join(
        f"    on {name} {{ address {story.addresses(lab, name, 'replication')[0]}:7789; }}\n"
        for name in _REPLICAS
    )

    def one(name: str) -> None:
        machine = lab[name]
        machine.write("/etc/corosync/authkey", key, 0o400)
        machine.write("/etc/corosync/corosync.conf", _COROSYNC % nodes)
        if name in _REPLICAS:
            machine.write("/etc/drbd.d/r0.res", _DRBD % (story.DISK, ons))
            machine.succeed("modprobe drbd; drbdadm create-md --force r0 && drbdadm up r0", timeout=120)
        machine.succeed("systemctl enable --now corosync pacemaker", timeout=120)

    in_parallel(*(lambda n=machine.name: one(n) for machine in lab.nodes))
    lab["n1"].wait_until_succeeds("drbdadm cstate r0 | grep -x Connected")
    lab["n1"].succeed("drbdadm -- --clear-bitmap new-current-uuid r0")
    # It shall be Pacemaker that brings it up.
    for name in _REPLICAS:
        lab[name].succeed("drbdadm down r0")
    failover.wait_until(lab, "all nodes are members", failover.all_members)
    lab["n1"].write("/root/stock.crm", _CIB + "".join(_fence(lab, m.name) for m in lab.nodes), 0o600)
    lab["n1"].succeed("crm --force configure load update /root/stock.crm", timeout=180)
    wait_until_well(lab)


def _node(lab: Lab, number: int, name: str) -> str:
    rings = [story.addresses(lab, name, network)[0] for network in ("cluster", "replication")]
    return (
        "    node {\n"
        f"        nodeid: {number}\n        name: {name}\n"
        f"        ring0_addr: {rings[0]}\n        ring1_addr: {rings[1]}\n"
        "    }\n"
    )


def _fence(lab: Lab, name: str) -> str:
    return (
        f"primitive fence_{name} stonith:fence_ipmilan params {failover.ipmi(lab[name])}"
        f" password={lab[name].bmc.password} pcmk_host_list={name}"
        " op monitor interval=120s\n"
        f"location fence_{name}_elsewhere fence_{name} -inf: {name}\n"
    )


def active_node(state: State) -> str | None:
    """Where Pacemaker has the whole group started."""
    return next((i.node for i in state.instances if i.primitive == "p_ip" and i.node is not None), None)


def wait_until_on(lab: Lab, node: str, timeout: float = 420) -> None:
    """Wait until the whole group is started on a node."""
    failover.wait_until(lab, f"the group runs on {node}", lambda s: active_node(s) == node, timeout)


def wait_until_well(lab: Lab, timeout: float = 420) -> str:
    """Wait until the group runs somewhere with all nodes in the cluster, nothing left to do, and both disks
    have everything; where."""
    failover.wait_until(lab, "all nodes are members", failover.all_members, timeout)
    lab.nodes[-1].succeed(f"crm_resource --wait --timeout={timeout:.0f}s", timeout=timeout)
    found = active_node(
        failover.wait_until(lab, "the group runs", lambda s: active_node(s) is not None, timeout)
    )
    assert found is not None
    lab[found].wait_until_succeeds(story.BOTH, timeout=timeout)
    return found


def attach(lab: Lab) -> str:
    """Log the client in; its device."""
    client = lab["c1"]
    client.succeed("systemctl start iscsid")
    client.succeed(f"iscsiadm -m discovery -t sendtargets -p {ADDRESS}", timeout=60)
    client.succeed(f"iscsiadm -m node -T {TARGET} -p {ADDRESS} --login", timeout=60)
    link = f"/dev/disk/by-path/ip-{ADDRESS}:3260-iscsi-{TARGET}-lun-0"
    return client.wait_until_succeeds(f"readlink -e {link}").strip()
