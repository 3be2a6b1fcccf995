"""``hactl node``: the storage nodes in the configuration. Nodes come with ``hactl cluster join``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Json, Node
from hactl.cli.reporting import begin, named, print_json, warn

if TYPE_CHECKING:
    from hactl.model.desired import Desired

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Storage nodes, their addresses and pools."
)
pool = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Where a node's agent creates disks.")
app.add_typer(pool, name="pool")

PoolName = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool.")]


@app.command(name="list")
def list_nodes(context: typer.Context, as_json: Json = False) -> None:
    """List the nodes of the cluster."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import node_document, pool_words

    begin(context, as_json)
    cluster = read(context).cluster
    if as_json:
        print_json({"schema": 1, "nodes": [node_document(cluster, n) for n in cluster.nodes]})
        return
    from hactl.cli import render

    rows = [
        {
            "name": n.name,
            "id": n.id,
            "cluster": n.addresses.cluster,
            "replication": n.addresses.replication,
            "storage": ", ".join(map(str, n.addresses.storage)),
            "domain": n.failure_domain or "-",
            "pools": ", ".join(map(pool_words, n.pools)) or "-",
        }
        for n in cluster.nodes
    ]
    headings = ("NODE", "ID", "CLUSTER", "REPLICATION", "STORAGE", "FAILURE DOMAIN", "POOLS")
    keys = ("name", "id", "cluster", "replication", "storage", "domain", "pools")
    render.listing(rows, dict(zip(keys, headings, strict=True)), "no nodes")


@app.command()
def show(context: typer.Context, node: Node, as_json: Json = False) -> None:
    """Show a node: its addresses and pools, and what is on it."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import leftover_document, lines, node_document
    from hactl.model import find

    begin(context, as_json)
    desired = read(context)
    document = node_document(desired.cluster, find.node(desired, named("node", node)))
    document["leftovers"] = [leftover_document(left) for left in desired.leftovers_of(node)]
    if as_json:
        print_json({"schema": 1, **document})
    else:
        typer.echo("\n".join(lines(document)))


@app.command(name="set-address")
def set_address(
    context: typer.Context,
    node: Node,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="IP", help="Address for agents and etcd.")
    ] = None,
    replication: Annotated[
        str | None, typer.Option("--replication", metavar="IP", help="Address for DRBD.")
    ] = None,
    storage: Annotated[
        list[str] | None, typer.Option("--storage", metavar="IP", help="Portals: all that there shall be.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a node other addresses; what is not named stays. Hosts have to log in to new portals."""
    from hactl.model import edit as edits
    from hactl.model import find

    begin(context, as_json, ordering=True)
    if cluster is None and replication is None and not storage:
        raise typer.BadParameter("name at least one of --cluster, --replication and --storage")

    def how(desired: Desired) -> Desired:
        now = find.node(desired, node).addresses
        where = edits.addresses(
            cluster or now.cluster, replication or now.replication, tuple(storage or now.storage)
        )
        return edits.change_node(desired, node, where=where)

    _edit(context, node, f"addresses of node {node}", how, f"node {node} has other addresses")


@app.command(name="set")
def set_node(
    context: typer.Context,
    node: Node,
    failure_domain: Annotated[
        str,
        typer.Option(
            "--failure-domain", metavar="NAME", help="What fails as one (a rack, a room); empty for none."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what a node fails together with: replicas are placed in different failure domains."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    domain = named("failure-domain", failure_domain) if failure_domain else None
    _edit(
        context,
        node,
        f"failure domain of node {node}",
        lambda desired: edits.change_node(desired, node, failure_domain=domain),
        f"node {node} is in failure domain {domain}" if domain else f"node {node} is its own failure domain",
    )


@app.command()
def remove(
    context: typer.Context,
    node: Node,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="The machine never comes back: strike its replicas off and forget what is left there.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove a node that nothing is on any more from the configuration."""
    from hactl.cli.configuration import edit
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("node", node)
    edit(
        context,
        f"remove node {node}" + (" (lost)" if lost else ""),
        lambda desired: edits.remove_node(desired, node, lost=lost),
        f"node {node} is removed from the configuration",
    )
    if not as_json:
        warn(
            f"if {node} runs a server of the store, it still counts there: "
            + (f"hactl cluster leave --lost {node}" if lost else f"on {node}: hactl cluster leave")
        )


@app.command()
def replace(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The node that gives everything up.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The node that takes it; it exists already.")],
    pool: Annotated[
        str | None,
        typer.Option("--pool", metavar="POOL", help="Pool of NEW for the disks; else that of the same name."),
    ] = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="OLD never comes back: forget what is left there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give everything that is on a node to another one, where replicas are built anew. Data on OLD stays."""
    from hactl.cli.configuration import edit
    from hactl.cli.documents import node_document
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("node", old)
    named("node", new)
    edit(
        context,
        f"replace node {old} by {new}",
        lambda desired: edits.replace_node(desired, old, new, pool=pool, lost=lost),
        f"{new} takes what {old} has; see: hactl status",
        node=lambda after: node_document(after.cluster, after.cluster.node(new)),
    )


@pool.command(name="add")
def pool_add(
    context: typer.Context,
    node: Node,
    pool: PoolName,
    lvm: Annotated[str | None, typer.Option("--lvm", metavar="VG", help="A volume group.")] = None,
    lvm_thin: Annotated[
        str | None, typer.Option("--lvm-thin", metavar="VG/POOL", help="A thin pool in a volume group.")
    ] = None,
    files: Annotated[
        str | None,
        typer.Option("--files", metavar="FOLDER", help="A folder, for trials: files behind loop devices."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a pool to a node: exactly one of --lvm, --lvm-thin and --files. What it is made of has to exist."""
    from hactl.model import edit as edits
    from hactl.model.spec import PoolSpec
    from hactl.model.values import make

    begin(context, as_json, ordering=True)
    if sum(kind is not None for kind in (lvm, lvm_thin, files)) != 1:
        raise typer.BadParameter("name exactly one of --lvm, --lvm-thin and --files")
    parts: dict[str, object] = {"name": pool}
    if lvm is not None:
        parts["lvm"] = {"vg": lvm}
    elif lvm_thin is not None:
        vg, _, thin = lvm_thin.partition("/")
        parts["lvm_thin"] = {"vg": vg, "thin_pool": thin}
    else:
        parts["files"] = {"path": files}
    made = make(PoolSpec, f"pool {pool}", **parts)
    _edit(
        context,
        node,
        f"add pool {pool} to node {node}",
        lambda desired: edits.add_pool(desired, node, made),
        f"node {node} has pool {pool}",
    )


@pool.command(name="remove")
def pool_remove(context: typer.Context, node: Node, pool: PoolName, as_json: Json = False) -> None:
    """Remove a pool that no disk is in from a node; what it is made of is not touched."""
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    _edit(
        context,
        node,
        f"remove pool {pool} from node {node}",
        lambda desired: edits.remove_pool(desired, node, pool),
        f"node {node} has no pool {pool} any more",
    )


def _edit(context: typer.Context, node: str, what: str, how: Callable[[Desired], Desired], text: str) -> None:
    from hactl.cli.configuration import edit
    from hactl.cli.documents import node_document

    named("node", node)
    edit(context, what, how, text, node=lambda after: node_document(after.cluster, after.cluster.node(node)))
