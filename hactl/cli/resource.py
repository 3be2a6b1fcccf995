"""``hactl resource``: replicated units, created, shown, grown, moved between disks and deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.adopt import adopt
from hactl.cli.options import SOCKET, Destroy, Json, Node, Resource, Socket
from hactl.cli.reporting import Mode, begin, named, print_json

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.model.spec import ResourceSpec

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Resources: what fails over as one.")

app.command()(adopt)

Disks = Annotated[
    list[str] | None,
    typer.Option(
        "--disk",
        metavar="NODE=PATH",
        help="A replica on a node: its disk under /dev, or pool:NAME. Once for each.",
    ),
]
Pool = Annotated[
    str | None, typer.Option("--pool", metavar="POOL", help="The pool that disks are created in.")
]
KeepData = Annotated[bool, typer.Option("--keep-data", help="Leave the data where it is.")]


def new_serial() -> str:
    """A serial that no other unit has or had: 128 random bits."""
    import secrets

    return secrets.token_hex(16)


def disks_of(given: Sequence[str] | None, what: str = "NODE") -> dict[str, str] | None:
    """``NODE=PATH`` words as a dictionary; None if there are none."""
    if not given:
        return None
    found: dict[str, str] = {}
    for word in given:
        key, equals, path = word.partition("=")
        if not equals or not key or not path:
            raise typer.BadParameter(f"{word!r} is not of the form {what}=/dev/PATH or {what}=pool:NAME")
        if key in found:
            raise typer.BadParameter(f"{key} is given two disks")
        found[key] = path
    return found


@app.command(name="list")
def list_resources(context: typer.Context, as_json: Json = False) -> None:
    """List the resources of the cluster."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import leftover_document, resource_document, resource_row

    begin(context, as_json)
    desired = read(context)
    cluster = desired.cluster
    if as_json:
        print_json(
            {
                "schema": 1,
                "resources": [resource_document(cluster, r) for r in cluster.resources],
                "leftovers": [leftover_document(left) for left in desired.leftovers],
            }
        )
        return
    from hactl.cli import render

    columns = {
        "name": "RESOURCE",
        "size": "SIZE",
        "nodes": "NODES",
        "preferred": "PREFERRED",
        "hosts": "HOSTS",
        "iqn": "TARGET",
    }
    render.listing([resource_row(r) for r in cluster.resources], columns, "no resources")
    for left in desired.leftovers:
        typer.echo(f"{left.resource}/{left.volume}: still to be removed by {left.node}")


@app.command()
def show(context: typer.Context, resource: Resource, as_json: Json = False) -> None:
    """Show a resource as it is configured; hactl status shows how it is."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import leftovers_of, lines, resource_document
    from hactl.model import find

    begin(context, as_json)
    desired = read(context)
    document = resource_document(desired.cluster, find.resource(desired, named("resource", resource)))
    document["leftovers"] = leftovers_of(desired, resource)
    if as_json:
        print_json({"schema": 1, **document})
    else:
        typer.echo("\n".join(lines(document)))


@app.command()
def create(
    context: typer.Context,
    name: Resource,
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="What hosts see, such as 10G.")],
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="How many nodes hold the data; 2 if not given.")
    ] = None,
    pool: Pool = None,
    disk: Disks = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes", metavar="NODE,...", help="Nodes that export it; replicas are placed among them."
        ),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="A host that sees it. Once for each.")
    ] = None,
    preferred: Annotated[
        str | None, typer.Option("--preferred", metavar="NODE", help="The node that becomes active.")
    ] = None,
    iqn: Annotated[
        str | None,
        typer.Option("--iqn", metavar="IQN", help="The target's name; else made from the resource's."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it is active; else return at once.")
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it can be made active.")
    ] = 300.0,
    socket: Socket = SOCKET,
    as_json: Json = False,
) -> None:
    """Create a resource, wait until its nodes have brought it up, and make one of them active."""
    from hactl.cli.configuration import change, tell
    from hactl.cli.documents import resource_document
    from hactl.model import edit as edits

    mode = begin(context, as_json, ordering=True)
    named("resource", name)
    disks = disks_of(disk)

    def how(desired: Desired) -> Desired:
        return edits.create_resource(
            desired,
            name,
            size,
            serial=new_serial,
            replicas=replicas,
            nodes=[n.strip() for n in nodes.split(",")] if nodes else None,
            disks=disks,
            pool=pool,
            hosts=host or (),
            preferred=preferred,
            iqn=iqn,
        )

    what = f"create resource {name}"
    after, changed = change(context, what, how)
    made = after.cluster.resource(name)
    text = f"{name}: created on {', '.join(made.nodes)}"
    if wait:
        on = _activate(made, socket, timeout, quiet=as_json)
        text = f"{name}: created on {', '.join(made.nodes)}, active on {on}"
    tell(mode, what, after, changed, text, resource=lambda d: resource_document(d.cluster, made))


def _activate(made: ResourceSpec, socket: Path, seconds: float, *, quiet: bool) -> str:
    from hactl.cli.bring_up import bring_up
    from hactl.cli.client import AgentClient

    on = made.preferred or made.replicas[0]

    def progress(text: str) -> None:
        if not quiet:
            typer.echo(f"{made.name}: waiting for {text}", err=True)

    return bring_up(AgentClient(str(socket)), made, on, seconds, progress)


@app.command()
def resize(
    context: typer.Context,
    resource: Resource,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The new size, such as 20G; never a smaller one.")
    ],
    as_json: Json = False,
) -> None:
    """Grow a resource of one volume; of several, one at a time: hactl volume resize."""
    from hactl.errors import Refused
    from hactl.model import edit as edits
    from hactl.model import find

    begin(context, as_json, ordering=True)

    def how(desired: Desired) -> Desired:
        volumes = find.resource(desired, resource).volumes
        if len(volumes) > 1:
            raise Refused(
                "which-volume",
                f"resource {resource} has {len(volumes)} volumes",
                f"name one: hactl volume resize {resource} NUMBER {size}",
            )
        return edits.grow_volume(desired, resource, volumes[0].number, size)

    edit_resource(context, resource, f"resize resource {resource}", how, f"{resource}: grows to {size}")


@app.command()
def delete(
    context: typer.Context,
    resource: Resource,
    yes_destroy: Destroy = None,
    keep_data: KeepData = False,
    as_json: Json = False,
) -> None:
    """Delete a resource and its data; asks for its name unless --yes-destroy or --keep-data is given."""
    from hactl.cli.configuration import edit
    from hactl.cli.documents import leftovers_of
    from hactl.model import edit as edits
    from hactl.model import find

    begin(context, as_json)
    named("resource", resource)
    approve(
        context,
        resource,
        yes_destroy,
        keep_data,
        lambda desired: find.resource(desired, resource),
        "deleting resource",
    )
    edit(
        context,
        f"delete resource {resource}",
        lambda desired: edits.delete_resource(desired, resource, destroy=not keep_data),
        f"{resource}: deleted; its nodes take it down" + ("" if keep_data else " and remove its data"),
        leftovers=lambda after: leftovers_of(after, resource),
    )


@app.command(name="set")
def set_resource(
    context: typer.Context,
    resource: Resource,
    preferred: Annotated[
        str | None,
        typer.Option("--preferred", metavar="NODE", help="The node that shall be active; empty for none."),
    ] = None,
    failback: Annotated[
        bool | None,
        typer.Option(
            "--failback/--no-failback",
            help="Go back to the preferred node by itself once that is UpToDate; else stay.",
        ),
    ] = None,
    maintenance: Annotated[
        bool | None,
        typer.Option(
            "--maintenance/--no-maintenance", help="Pacemaker leaves it alone, whatever happens; or not."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which node shall be active when there is a choice, and what Pacemaker may do by itself."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    if preferred is None and failback is None and maintenance is None:
        raise typer.BadParameter("name at least one of --preferred, --failback and --maintenance")
    node = named("node", preferred) if preferred else None
    told = []
    if preferred is not None:
        told.append(f"prefers {node}" if node else "prefers no node")
    if failback is not None:
        told.append("goes back there by itself" if failback else "stays where it is")
    if maintenance is not None:
        told.append("is in maintenance" if maintenance else "is not in maintenance")

    def how(desired: Desired) -> Desired:
        if preferred is not None:
            desired = edits.set_preferred(desired, resource, node)
        return edits.set_policy(desired, resource, failback=failback, maintenance=maintenance)

    edit_resource(
        context, resource, f"settings of resource {resource}", how, f"{resource}: {', '.join(told)}"
    )


@app.command(name="add-replica")
def add_replica(
    context: typer.Context,
    resource: Resource,
    node: Node,
    pool: Pool = None,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="VOLUME=PATH", help="The disk for a volume. Once for each."),
    ] = None,
    no_data: Annotated[
        bool,
        typer.Option("--no-data", help="Let the node export it without a replica; it can never be active."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a replica on another node, which copies the data."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("node", node)
    if no_data and (pool or disk):
        raise typer.BadParameter("--no-data takes no disks")
    disks = _numbered(disks_of(disk, "VOLUME"))

    def how(desired: Desired) -> Desired:
        if no_data:
            return edits.add_exporter(desired, resource, node)
        return edits.add_replica(desired, resource, node, disks=disks, pool=pool)

    text = (
        f"{resource}: {node} exports it"
        if no_data
        else f"{resource}: {node} copies the data; see: hactl status"
    )
    edit_resource(context, resource, f"replica of {resource} on {node}", how, text)


def _numbered(disks: dict[str, str] | None) -> dict[int, str] | None:
    if disks is None:
        return None
    for number in disks:
        if not (number.isascii() and number.isdigit() and len(number) <= 4):
            raise typer.BadParameter(f"{number!r} is not the number of a volume")
    return {int(number): path for number, path in disks.items()}


@app.command(name="remove-replica")
def remove_replica(
    context: typer.Context,
    resource: Resource,
    node: Node,
    yes_destroy: Destroy = None,
    keep_data: KeepData = False,
    as_json: Json = False,
) -> None:
    """Take a resource from a node, with the copy of its data there; never the last copy."""
    from hactl.model import edit as edits

    begin(context, as_json)
    named("resource", resource)
    named("node", node)
    approve(
        context,
        resource,
        yes_destroy,
        keep_data,
        lambda desired: edits.remove_replica(desired, resource, node, destroy=not keep_data),
        f"on {node} only, removing the replica of resource",
    )
    edit_resource(
        context,
        resource,
        f"remove replica of {resource} from {node}",
        lambda desired: edits.remove_replica(desired, resource, node, destroy=not keep_data),
        f"{resource}: {node} takes it down" + ("" if keep_data else " and removes its copy"),
    )


def approve(
    context: typer.Context,
    resource: str,
    yes_destroy: list[str] | None,
    keep_data: bool,
    possible: Callable[[Desired], object],
    what: str,
) -> None:
    """Return if data of a resource may be removed, or none is; ``possible`` refuses what cannot be."""
    from hactl.cli import confirm
    from hactl.cli.configuration import read

    if keep_data and yes_destroy:
        raise typer.BadParameter("--keep-data and --yes-destroy contradict each other")
    # Refusals first: nobody should type a name for what is not possible anyway.
    possible(read(context))
    mode: Mode = context.obj
    if not keep_data:
        confirm.destruction(mode, (resource,), tuple(yes_destroy or ()), what)
    mode.ordering = True


def edit_resource(
    context: typer.Context, resource: str, what: str, how: Callable[[Desired], Desired], text: str
) -> None:
    """Change a resource and tell what came of it."""
    from hactl.cli.configuration import edit
    from hactl.cli.documents import resource_document

    named("resource", resource)
    edit(
        context,
        what,
        how,
        text,
        resource=lambda after: resource_document(after.cluster, after.cluster.resource(resource)),
    )
