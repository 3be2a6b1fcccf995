"""``hactl failover``: whether another node takes over by itself when one is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Json
from hactl.cli.reporting import Mode, begin

if TYPE_CHECKING:
    from hactl.model.desired import Desired

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Failover: by itself, or by an operator's order. hactl fencing show tells which it is.",
)

YES = "--yes-without-fencing"


@app.command()
def automatic(
    context: typer.Context,
    without_fencing: Annotated[
        bool,
        typer.Option(
            "--without-fencing",
            help="Even if a lost node cannot be switched off, which may cost data; asks for a sentence.",
        ),
    ] = False,
    yes_without_fencing: Annotated[
        str | None,
        typer.Option(YES, metavar="CLUSTER", help="Do without fencing in this cluster, without asking."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let Pacemaker take over by itself when a node is lost; every node needs a fence device."""
    from hactl.cli import confirm
    from hactl.cli.configuration import read
    from hactl.model import edit as edits

    mode = begin(context, as_json)
    without = without_fencing or yes_without_fencing is not None
    now = read(context)
    # Refusals first: nobody should type a sentence for what is not possible anyway.
    edits.set_failover(now, automatic=True, without_fencing=without)
    if without:
        name = now.cluster.name
        confirm.sentence(
            mode,
            name,
            yes_without_fencing,
            f"promote without fencing in {name}",
            "without fencing, a node that was only cut off goes on writing while another one takes over: "
            "hosts may read old data, and what was written on one side is lost",
            YES,
        )
    _change(context, mode, "failover: automatic" + (" without fencing" if without else ""), True, without)


@app.command()
def manual(context: typer.Context, as_json: Json = False) -> None:
    """Let nobody take over by itself; after a loss: hactl promote."""
    mode = begin(context, as_json)
    _change(context, mode, "failover: manual", False, False)


def _change(context: typer.Context, mode: Mode, what: str, by_itself: bool, without: bool) -> None:
    from hactl.cli.configuration import change, tell
    from hactl.model import edit as edits
    from hactl.pacemaker import charge

    mode.ordering = True

    def how(desired: Desired) -> Desired:
        return edits.set_failover(desired, automatic=by_itself, without_fencing=without)

    after, changed = change(context, what, how)
    text = f"{after.cluster.name}: nobody takes over by itself; after a loss: hactl promote RESOURCE"
    if by_itself:
        text = f"{after.cluster.name}: Pacemaker takes over by itself"
        missing = charge.unfenced(after.cluster)
        if missing:
            text += f", although nobody can switch off {', '.join(missing)}"
    tell(mode, what, after, changed, text, failover=lambda d: charge.document(d.cluster))
