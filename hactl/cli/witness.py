"""``hactl witness``: what nodes ask, beside each other, whether their storage network works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hactl.cli.options import Json
from hactl.cli.reporting import begin, print_json

if TYPE_CHECKING:
    from hactl.model.desired import Desired

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Witnesses: what nodes ask, beside each other, whether their storage network works.",
)

Address = Annotated[
    str,
    typer.Argument(metavar="ADDRESS", help="What answers ping on the hosts' network: a gateway, a switch."),
]


def _names(desired: Desired) -> list[str]:
    return [str(address) for address in desired.cluster.storage_witnesses]


def _text(desired: Desired) -> str:
    return f"nodes ask each other and {', '.join(_names(desired)) or 'nobody else'}"


@app.command()
def add(context: typer.Context, address: Address, as_json: Json = False) -> None:
    """Have nodes ask an address, too, before they believe that their storage network is cut."""
    from hactl.model import edit as edits

    _change(context, f"witness {address}", as_json, lambda d: edits.add_witness(d, address))


@app.command()
def remove(context: typer.Context, address: Address, as_json: Json = False) -> None:
    """Have them ask it no more."""
    from hactl.model import edit as edits

    _change(context, f"remove witness {address}", as_json, lambda d: edits.remove_witness(d, address))


def _change(context: typer.Context, what: str, as_json: bool, how: Any) -> None:
    from hactl.cli.configuration import change, tell

    mode = begin(context, as_json, ordering=True)
    after, changed = change(context, what, how)
    tell(mode, what, after, changed, _text(after), witnesses=_names)


@app.command(name="list")
def listing(context: typer.Context, as_json: Json = False) -> None:
    """Show them."""
    from hactl.cli.configuration import read

    begin(context, as_json)
    desired = read(context)
    if as_json:
        print_json({"schema": 1, "witnesses": _names(desired)})
    else:
        typer.echo(_text(desired))
