"""``hactl check``: what is wrong with a specification file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hactl.cli.exits import Exit
from hactl.cli.options import Json
from hactl.cli.reporting import begin, print_json


class Drbd(StrEnum):
    """DRBD generations that differ in what they can do."""

    V84 = "8.4"
    V9 = "9"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)


def check(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Specification file (YAML).")],
    drbd: Annotated[Drbd | None, typer.Option(help="Check for what this DRBD can do, too.")] = None,
    as_json: Json = False,
) -> None:
    """Validate a specification file; nothing is changed."""
    from hactl.model.load import SpecError, load

    begin(context, as_json)
    try:
        cluster = load(spec, max_replicas=2 if drbd is Drbd.V84 else None)
    except SpecError as error:
        if not as_json:
            raise
        # The findings are the result that was asked for, so they go to standard output.
        print_json({"ok": False, "source": str(spec), "findings": [f.as_dict() for f in error.findings]})
        raise typer.Exit(Exit.REFUSED) from None
    counts = {what: len(getattr(cluster, what)) for what in ("nodes", "hosts", "resources")}
    if as_json:
        print_json({"ok": True, "source": str(spec), "findings": [], "cluster": cluster.name, **counts})
    else:
        typer.echo(f"{spec}: OK: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
