"""``hactl export`` and ``hactl unexport``: which host sees which units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Host, Json, Resource
from hactl.cli.reporting import begin, named
from hactl.cli.resource import edit_resource

if TYPE_CHECKING:
    from collections.abc import Mapping

Volume = Annotated[
    list[int] | None,
    typer.Option("--volume", metavar="N", min=0, max=15, help="This volume only. Once for each; else all."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command()(unexport)


def export(
    context: typer.Context,
    resource: Resource,
    host: Host,
    volume: Volume = None,
    lun: Annotated[
        list[int] | None,
        typer.Option(
            "--lun",
            metavar="M",
            min=0,
            max=16383,
            help="The volume's LUN for this host, in the order of --volume.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a host see a resource: all its volumes, also future ones, or chosen ones under chosen LUNs."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("host", host)
    luns = _luns(volume or [], lun or [])
    edit_resource(
        context,
        resource,
        f"export {resource} to {host}",
        lambda desired: edits.export(desired, resource, host, luns),
        f"{resource}: {host} sees it; attach it: hactl host script {host} | ssh {host} sh",
    )


def _luns(volumes: list[int], luns: list[int]) -> Mapping[int, int | None] | None:
    if not volumes:
        if luns:
            raise typer.BadParameter("--lun needs --volume")
        return None
    if luns and len(luns) != len(volumes):
        raise typer.BadParameter("give a --lun for each --volume, or none")
    if len(set(volumes)) < len(volumes):
        raise typer.BadParameter("a --volume is named twice")
    return dict(zip(volumes, luns, strict=True)) if luns else dict.fromkeys(volumes)


def unexport(
    context: typer.Context, resource: Resource, host: Host, volume: Volume = None, as_json: Json = False
) -> None:
    """Let a host not see a resource any more. Its I/O fails: detach it there first."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("host", host)
    edit_resource(
        context,
        resource,
        f"unexport {resource} from {host}",
        lambda desired: edits.unexport(desired, resource, host, volume),
        f"{resource}: {host} does not see it any more"
        if not volume
        else f"{resource}: {host} sees less of it",
    )
