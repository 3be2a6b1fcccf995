"""Which node is active, from what the nodes say: pure."""

from __future__ import annotations

from collections.abc import Mapping

from hactl.agents.peers import PeerResource
from hactl.agents.states import OrderedRole

PeerViews = Mapping[str, Mapping[str, PeerResource] | None]
"""What each other node last said of its resources; None: it did not answer."""


def successor(resource: str, views: PeerViews) -> str | None:
    """The one other node that says it serves the resource now; None if there is none, or more than one."""
    found = [
        node
        for node, view in sorted(views.items())
        if view is not None and resource in view and view[resource].serving
    ]
    return found[0] if len(found) == 1 else None


def active_node(resource: str, views: PeerViews, last: str | None, primary_peer: str | None) -> str | None:
    """Like :func:`successor`, but goes on reporting the ``last`` one while it does not answer or is handing
    over.

    What a standby node reports of others' groups then lags behind, which is harmless, instead of telling
    every initiator twice that nobody is active whenever an agent is restarted.
    """
    found = successor(resource, views)
    if found is not None:
        return found
    if last is None or last not in views:
        return primary_peer if primary_peer is not None and views.get(primary_peer) is None else None
    view = views[last]
    if view is None:
        return last
    known = view.get(resource)
    if known is not None and (known.role is OrderedRole.DEMOTED or known.primary):
        return last
    return None
