"""Reads and writes the states of a resource's target port groups in this node's kernel.

Every node's kernel holds the states of all nodes' groups, so that REPORT TARGET PORT GROUPS tells the same on
every path; each node's agent writes its own kernel only.

Order of writes. Within one call every group that does not become active/optimized is written first, over all
volumes, and those that do come last: at no moment does a kernel report two active/optimized groups of one
unit. Between nodes the order is the caller's: no kernel is told that a group is active/optimized before the
gate behind that group is open. A node that hands over goes on reporting itself active/optimized while its
gate holds I/O, and writes the new view (its own group standby, the successor's active/optimized) before what
was held fails, since that is retried at once. Transitioning is understood when found, and never ordered: why
is told in docs/decisions/0001. A write of the state that a group has already is left out, since each write
raises a unit attention (2A/06, asymmetric access state changed) on every nexus.
"""

from __future__ import annotations

from collections.abc import Mapping

from hactl.alua.states import AccessState
from hactl.errors import Refused
from hactl.model.spec import ClusterSpec, ResourceSpec, VolumeSpec
from hactl.target.configfs import ConfigFs
from hactl.target.gates import gate_name
from hactl.target.observe import access_state, find_backstore
from hactl.target.tree import group_name, hba_name


def observe_states(
    fs: ConfigFs, cluster: ClusterSpec, resource: ResourceSpec
) -> dict[int, dict[str, AccessState]]:
    """State per volume number and node name, as this kernel reports them.

    Raises :class:`Refused` if a volume or a node's group is not set up here, :class:`Failed` on a state hactl
    does not know.
    """
    return {
        volume.number: {
            node: access_state(fs, _group(fs, cluster, resource, volume, node)) for node in resource.nodes
        }
        for volume in resource.volumes
    }


def set_states(
    fs: ConfigFs, cluster: ClusterSpec, resource: ResourceSpec, states: Mapping[str, AccessState]
) -> int:
    """Give the groups of the nodes in ``states`` these states, on every volume; the number of writes is
    returned.

    Only what differs is written; other nodes' groups are left alone. Raises :class:`Refused`, with nothing
    changed, if a node does not export the resource, if two groups would be active/optimized or if a group is
    not set up; :class:`Failed` if the kernel refuses a write, in which case those before it were done.
    """
    for node in states:
        if node not in resource.nodes:
            raise Refused("node-not-exporting", f"node {node} does not export {resource.name}")
    paths = [
        (_group(fs, cluster, resource, volume, node), node)
        for volume in resource.volumes
        for node in resource.nodes
    ]
    after: dict[str, int] = {}
    pending: list[tuple[str, AccessState]] = []
    for path, node in paths:
        now = access_state(fs, path)
        wanted = states.get(node, now)
        if wanted is AccessState.ACTIVE_OPTIMIZED:
            backstore = path.rpartition("/alua/")[0]
            after[backstore] = after.get(backstore, 0) + 1
        if wanted is not now:
            pending.append((path, wanted))
    if any(count > 1 for count in after.values()):
        raise Refused(
            "two-active",
            f"two port groups of {resource.name} would be active/optimized",
            "give the group that is active/optimized now another state in the same call",
        )
    pending.sort(key=lambda write: write[1] is AccessState.ACTIVE_OPTIMIZED)
    for path, state in pending:
        fs.write(f"{path}/alua_access_state", str(state.value))
    return len(pending)


def _group(fs: ConfigFs, cluster: ClusterSpec, resource: ResourceSpec, volume: VolumeSpec, node: str) -> str:
    name = gate_name(resource.name, volume.number)
    backstore = find_backstore(fs, name, hba_name("iblock", resource, volume))
    path = f"{backstore}/alua/{group_name(cluster.node(node))}"
    if backstore is None or not fs.exists(path):
        raise Refused(
            "group-missing",
            f"the port group of node {node} for volume {volume.number} of {resource.name} is not set up here",
            "the target has to be set up first",
        )
    return path
