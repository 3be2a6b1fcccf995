"""Edits of the desired state: pure functions from it and parameters to the new one.

Each raises :class:`hactl.errors.Refused`, which names the thing, the reason and the remedy, and then nothing
was changed. What users expect to be able to do twice gives the same value the second time. Whoever commits
an edit checks the whole afterwards (:func:`hactl.store.desired.change`), so that an edit needs to refuse by
itself only what it can tell in better words.
"""

from __future__ import annotations

from hactl.model.edit_adopt import adopt, adopted
from hactl.model.edit_fencing import fence_device, remove_fencing, set_failover, set_fencing
from hactl.model.edit_hosts import add_host, change_host, chap, export, remove_host, unexport
from hactl.model.edit_nodes import (
    KEEP,
    Keep,
    add_node,
    add_pool,
    addresses,
    change_node,
    new_cluster,
    remove_node,
    remove_pool,
)
from hactl.model.edit_replicas import add_exporter, add_replica, remove_replica, replace_node
from hactl.model.edit_resources import Serials, create_resource, delete_resource, set_policy, set_preferred
from hactl.model.edit_volumes import add_volume, grow_volume, remove_volume
from hactl.model.edit_witnesses import add_witness, remove_witness
from hactl.model.leave import remove_leftovers
from hactl.model.spec import Addresses

__all__ = [
    "KEEP",
    "Addresses",
    "Keep",
    "Serials",
    "add_exporter",
    "add_host",
    "add_node",
    "add_pool",
    "add_replica",
    "add_volume",
    "add_witness",
    "addresses",
    "adopt",
    "adopted",
    "change_host",
    "change_node",
    "chap",
    "create_resource",
    "delete_resource",
    "export",
    "fence_device",
    "grow_volume",
    "new_cluster",
    "remove_fencing",
    "remove_host",
    "remove_leftovers",
    "remove_node",
    "remove_pool",
    "remove_replica",
    "remove_volume",
    "remove_witness",
    "replace_node",
    "set_failover",
    "set_fencing",
    "set_policy",
    "set_preferred",
    "unexport",
]
