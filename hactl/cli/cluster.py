"""``hactl cluster``: make a cluster, bring machines into it, take them out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hactl.cli.cluster_recover import recover
from hactl.cli.cluster_run import run, teller
from hactl.cli.cluster_text import read_token, show_invitations, show_status, show_token
from hactl.cli.options import Json
from hactl.cli.reporting import begin, named, print_json

if TYPE_CHECKING:
    from hactl.cluster.draft import Draft, NodeOptions
    from hactl.cluster.invite import Token
    from hactl.cluster.kit import Kit

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make a cluster, bring machines into it, take them out, and see its store.",
)

Node = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="Name of this node; else its host name.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster-address",
        metavar="ADDRESS",
        help="This node's address for the others' agents and the store.",
    ),
]
Replication = Annotated[
    str | None, typer.Option("--replication-address", metavar="ADDRESS", help="… for DRBD.")
]
Storage = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-address", metavar="ADDRESS", help="… for hosts; more than once for more portals."
    ),
]
Domain = Annotated[
    str | None,
    typer.Option("--failure-domain", metavar="NAME", help="What fails together with it: a rack, a room."),
]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool",
        metavar="NAME=KIND:PLACE",
        help="Where disks are made: NAME=lvm:VG, NAME=lvm-thin:VG/POOL or NAME=files:PATH; more than once"
        " for more.",
    ),
]


@app.command()
def init(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the cluster.")],
    node: Node = None,
    cluster_address: Cluster = None,
    replication_address: Replication = None,
    storage_address: Storage = None,
    failure_domain: Domain = None,
    pool: Pools = None,
    iqn_prefix: Annotated[
        str | None,
        typer.Option(
            "--iqn-prefix", metavar="IQN", help="What target names begin with; the rest is the resource."
        ),
    ] = None,
    without_pacemaker: Annotated[
        bool,
        typer.Option(
            "--without-pacemaker",
            help="Set up neither Corosync nor Pacemaker: no other node takes over by itself.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a cluster of this machine, and print the command with which others join.

    An address that is not given is the machine's only one; if it has several, say which. Corosync and
    Pacemaker are set up with it, and on every machine that joins."""
    from hactl.cluster.init import init as make_cluster

    begin(context, as_json, ordering=True)
    named("cluster", name)
    options = _options(node, cluster_address, replication_address, storage_address, failure_domain, pool)

    async def work(kit: Kit) -> Token:
        draft = await _draft(options, kit)
        return await make_cluster(
            name, draft, kit, teller(as_json), iqn_prefix=iqn_prefix, pacemaker=not without_pacemaker
        )

    token = run(work)
    show_token(token, as_json, uses=2, first=f"cluster {name} is made, with this node in it")


@app.command()
def join(
    context: typer.Context,
    token: Annotated[
        str | None,
        typer.Argument(metavar="[-]", help="- reads the token from standard input, as is done anyway."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Read the token from a file.")
    ] = None,
    node: Node = None,
    cluster_address: Cluster = None,
    replication_address: Replication = None,
    storage_address: Storage = None,
    failure_domain: Domain = None,
    pool: Pools = None,
    as_json: Json = False,
) -> None:
    """Bring this machine into a cluster: hactl cluster join <<< TOKEN

    The token comes from standard input, HACTL_TOKEN or a file, never from the command line, which every user
    of the machine can see. On a node of a cluster, without a token: finish what is missing of its joining,
    and take a free place among the store's members."""
    from hactl.cluster import node_config, unfinished
    from hactl.cluster.invite import parse
    from hactl.cluster.join import complete
    from hactl.cluster.join import join as enter

    begin(context, as_json, ordering=True)
    options = _options(node, cluster_address, replication_address, storage_address, failure_domain, pool)

    async def work(kit: Kit) -> node_config.NodeConfig:
        inside = kit.layout.node_file.exists() and options is None
        text = read_token(token, token_file, needed=not inside)
        if inside and not text:
            return await complete(kit, teller(as_json))
        if kit.layout.node_file.exists() and unfinished.load(kit.layout) is None:
            from hactl.cluster.init import refuse_in_cluster

            refuse_in_cluster(kit)
        return await enter(parse(text), await _draft(options, kit), kit, teller(as_json))

    config = run(work)
    if as_json:
        print_json({"schema": 1, "cluster": config.cluster, "node": config.node, "etcd": list(config.etcd)})
    else:
        typer.echo(f"this machine is node {config.node} of the cluster {config.cluster}")


@app.command()
def leave(
    context: typer.Context,
    lost: Annotated[
        str | None,
        typer.Option("--lost", metavar="NODE", help="Remove another node, which will never come back."),
    ] = None,
    end_cluster: Annotated[
        str | None,
        typer.Option(
            "--end-cluster", metavar="NAME", help="This is the last node: end the cluster of that name."
        ),
    ] = None,
    only_here: Annotated[
        bool,
        typer.Option(
            "--only-here", help="Tell nobody: the cluster is gone, or has removed this node already."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Take this node out of its cluster, or remove one that is lost."""
    from hactl.cluster import leave as leaving

    begin(context, as_json, ordering=True)
    if sum((lost is not None, end_cluster is not None, only_here)) > 1:
        raise typer.BadParameter("--lost, --end-cluster and --only-here exclude each other")
    if lost is not None:
        name = named("node", lost)
        struck = run(lambda kit: leaving.remove_lost(name, kit, teller(as_json)))
        if as_json:
            print_json({"schema": 1, "removed": name, "resources": list(struck)})
            return
        typer.echo(f"node {name} is removed")
        if struck:
            typer.echo(f"these have a replica less now: {', '.join(struck)}; see: hactl resource")
        return
    if only_here:
        run(lambda kit: leaving.only_here(kit, teller(as_json)))
        left: dict[str, Any] = {}
        text = "this machine is in no cluster any more; if the cluster still has the node, remove it there"
    else:
        cluster = run(lambda kit: leaving.leave(kit, teller(as_json), end_cluster=end_cluster))
        left = {"cluster": cluster}
        text = f"this machine has left the cluster {cluster}"
    if as_json:
        print_json({"schema": 1, **left})
    else:
        typer.echo(text)


app.command()(recover)


@app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show the store's members and leader, and the nodes with their agents."""
    from hactl.cluster.status import status as look

    begin(context, as_json)
    document = run(look)
    if as_json:
        print_json(document)
        return
    show_status(document)


@app.command()
def invite(
    context: typer.Context,
    uses: Annotated[int, typer.Option("--uses", min=1, max=14, help="How many nodes it is for.")] = 1,
    hours: Annotated[float, typer.Option("--hours", min=0.1, max=168, help="How long it is valid.")] = 1.0,
    listing: Annotated[bool, typer.Option("--list", help="Show invitations instead.")] = False,
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="ID", help="End an invitation instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an invitation, and print the command with which a machine joins."""
    from hactl.cluster import invite as invitations
    from hactl.cluster import node_config
    from hactl.cluster.init import own_fingerprint
    from hactl.cluster.leave import address_of

    begin(context, as_json, ordering=not listing)
    if listing and revoke is not None:
        raise typer.BadParameter("--list and --revoke exclude each other")

    async def work(kit: Kit) -> Any:
        config = node_config.load(kit.layout.node_file)
        store = kit.store(config)
        try:
            if listing:
                return await invitations.listing(store, config.cluster)
            if revoke is not None:
                return await invitations.revoke(store, config.cluster, revoke)
            return await invitations.create(
                store,
                config.cluster,
                by=config.node,
                address=address_of(kit),
                fingerprint=own_fingerprint(kit),
                life=timedelta(hours=hours),
                uses=uses,
                now=kit.now(),
                random=kit.random,
            )
        finally:
            await store.close()

    made = run(work)
    if listing:
        show_invitations(made, as_json)
    elif revoke is not None:
        if as_json:
            print_json({"schema": 1, "revoked": revoke})
        else:
            typer.echo(f"invitation {revoke} is revoked")
    else:
        show_token(made, as_json, uses=uses)


@app.command(name="renew-certificates")
def renew_certificates(context: typer.Context, as_json: Json = False) -> None:
    """Renew this node's certificate if a third of its life is left or less; the agent does it by itself."""
    from hactl.cluster import checks, pki

    begin(context, as_json, ordering=True)

    async def work(kit: Kit) -> tuple[bool, str]:
        checks.refuse_unless_root(kit.machine)
        done = pki.renew(kit.layout, kit.now())
        until = pki.valid_until(kit.layout.certificates.certificate.read_bytes())
        return done, until.isoformat(timespec="seconds")

    done, until = run(work)
    if as_json:
        print_json({"schema": 1, "renewed": done, "until": until})
    else:
        typer.echo(f"{'renewed' if done else 'not due yet'}; valid until {until}")


def _options(
    node: str | None,
    cluster_address: str | None,
    replication_address: str | None,
    storage_address: list[str] | None,
    failure_domain: str | None,
    pool: list[str] | None,
) -> NodeOptions | None:
    """None if none was given."""
    from hactl.cluster.draft import NodeOptions

    given = NodeOptions(
        node=node,
        cluster_address=cluster_address,
        replication_address=replication_address,
        storage_addresses=tuple(storage_address or ()),
        failure_domain=failure_domain,
        pools=tuple(pool or ()),
    )
    return None if given == NodeOptions() else given


async def _draft(options: NodeOptions | None, kit: Kit) -> Draft:
    from hactl.cluster.draft import NodeOptions, draft

    return draft(options or NodeOptions(), kit.machine.hostname(), await kit.machine.addresses())
