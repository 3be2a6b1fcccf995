"""``hactl volume``: the logical units of a resource."""

from __future__ import annotations

from typing import Annotated

import typer

from hactl.cli.options import Destroy, Json, Resource
from hactl.cli.reporting import begin, named
from hactl.cli.resource import Disks, KeepData, approve, disks_of, edit_resource, new_serial

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Volumes of a resource, each a LUN.")

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=0, max=15, help="Number of the volume.")]


@app.command()
def add(
    context: typer.Context,
    resource: Resource,
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="What hosts see, such as 10G.")],
    disk: Disks = None,
    lun: Annotated[
        int | None, typer.Option("--lun", min=0, max=16383, help="Its LUN; else the number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a volume to a resource; where its disks are in pools, the new one's are in the same."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    disks = disks_of(disk)
    edit_resource(
        context,
        resource,
        f"add volume to {resource}",
        lambda desired: edits.add_volume(desired, resource, size, serial=new_serial, disks=disks, lun=lun),
        f"{resource}: has another volume; hosts see it after a rescan",
    )


@app.command()
def resize(
    context: typer.Context,
    resource: Resource,
    number: Number,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The new size, such as 20G; never a smaller one.")
    ],
    as_json: Json = False,
) -> None:
    """Grow a volume. Disks in pools are grown by the agents, others must have been."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    edit_resource(
        context,
        resource,
        f"resize volume {number} of {resource}",
        lambda desired: edits.grow_volume(desired, resource, number, size),
        f"{resource}: volume {number} grows to {size}",
    )


@app.command()
def remove(
    context: typer.Context,
    resource: Resource,
    number: Number,
    yes_destroy: Destroy = None,
    keep_data: KeepData = False,
    as_json: Json = False,
) -> None:
    """Remove a volume and its data; asks for the name unless --yes-destroy or --keep-data is given."""
    from hactl.model import edit as edits

    begin(context, as_json)
    named("resource", resource)
    approve(
        context,
        resource,
        yes_destroy,
        keep_data,
        lambda desired: edits.remove_volume(desired, resource, number, destroy=not keep_data),
        f"removing volume {number} of resource",
    )
    edit_resource(
        context,
        resource,
        f"remove volume {number} of {resource}",
        lambda desired: edits.remove_volume(desired, resource, number, destroy=not keep_data),
        f"{resource}: volume {number} is taken down" + ("" if keep_data else " and its data removed"),
    )
