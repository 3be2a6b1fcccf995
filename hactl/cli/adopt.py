"""``hactl resource adopt``: a node's disks hold a resource's data from before hactl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Json, Resource
from hactl.cli.reporting import begin, named

if TYPE_CHECKING:
    from hactl.model.desired import Desired


def adopt(
    context: typer.Context,
    resource: Resource,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The node whose disks hold the data.")],
    volume: Annotated[
        list[int] | None,
        typer.Option("--volume", metavar="N", min=0, max=15, help="Only this volume. Once for each."),
    ] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take that back, as long as nothing has come of it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep the data that a node's disks have, and copy them to the other replicas, whose disks are empty."""
    from hactl.cli.resource import edit_resource
    from hactl.model import edit as edits
    from hactl.model import find

    begin(context, as_json, ordering=True)
    named("node", node)

    def how(desired: Desired) -> Desired:
        if not withdraw:
            return edits.adopt(desired, resource, node, volume)
        find.resource(desired, resource)
        find.node(desired, node)
        return edits.adopted(desired, resource, node, volume)

    kept = f"{node} keeps the data on its disks, as soon as nothing else has them open; see: hactl status"
    text = f"{resource}: {f'nothing is said of the data on {node} any more' if withdraw else kept}"
    edit_resource(context, resource, f"adopt data of {resource} on {node}", how, text)
