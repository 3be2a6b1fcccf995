"""``hactl cluster recover``: the store goes on from one member's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli import confirm
from hactl.cli.cluster_run import run, teller
from hactl.cli.options import Json
from hactl.cli.reporting import begin, named, print_json, warn

if TYPE_CHECKING:
    from hactl.cluster.recover import Recovered


def recover(
    context: typer.Context,
    lost: Annotated[
        list[str] | None,
        typer.Option(
            "--lost", metavar="NODE", help="A node that is off and never comes back; more than once for more."
        ),
    ] = None,
    rejoin: Annotated[
        list[str] | None,
        typer.Option(
            "--rejoin",
            metavar="NODE",
            help="A node that stays, whose part of the store is lost; it joins again afterwards.",
        ),
    ] = None,
    yes: Annotated[
        str | None,
        typer.Option("--yes-recover", metavar="CLUSTER", help="The cluster's name: do it without asking."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Have the store go on from this node's data alone, when most of its members are lost for good.

    Every other member of the store has to be given up by name. Lost nodes are taken out of the cluster. Make
    sure that they are off: what they go on doing with their old store, nobody here knows of."""
    from hactl.cluster import recover as recovering

    mode = begin(context, as_json, ordering=True)
    gone = sorted({named("node", name) for name in lost or ()})
    back = sorted({named("node", name) for name in rejoin or ()})
    if not gone and not back:
        raise typer.BadParameter("name the nodes that are given up: --lost NODE, --rejoin NODE")
    if both := set(gone) & set(back):
        raise typer.BadParameter(f"{', '.join(sorted(both))}: either --lost or --rejoin")
    cluster = run(lambda kit: recovering.check(kit, gone, back))
    what = []
    if gone:
        what.append(f"{' and '.join(gone)} must be switched off, and never run again as they were")
    if back:
        what.append(f"what {' and '.join(back)} had of the store is given up")
    text = "; ".join((f"The store of {cluster} goes on from this node's data alone", *what))
    sentence = f"{' and '.join(gone)} off for good" if gone else f"give up {' and '.join(back)}"
    confirm.sentence(mode, cluster, yes, sentence, text, "--yes-recover")
    done = run(lambda kit: recovering.recover(kit, teller(as_json), gone, back))
    if as_json:
        print_json(
            {
                "schema": 1,
                "cluster": done.cluster,
                "lost": gone,
                "rejoin": back,
                "resources": list(done.resources),
                "stay": [{"node": node, "reason": reason} for node, reason in done.stay.items()],
                "behind": done.behind,
                "aside": str(done.aside),
            }
        )
    else:
        _show(done, back)


def _show(done: Recovered, back: list[str]) -> None:
    typer.echo(f"the store of {done.cluster} goes on with this node as its only member")
    if done.resources:
        typer.echo(f"these have a replica less now: {', '.join(done.resources)}; see: hactl resource")
    for node, reason in done.stay.items():
        warn(f"{node} is still in the configuration: {reason}; then: hactl cluster leave --lost {node}")
    if done.behind:
        warn(
            f"the store is {done.behind} changes older than what this node has seen, so its agent does not "
            "follow it: see hactl status"
        )
    for node in back:
        typer.echo(f"on {node}: hactl cluster join")
    typer.echo("the store needs other members again: hactl cluster invite, and hactl cluster join there")
    typer.echo(f"its data from before are in {done.aside}; remove them when all is well")
