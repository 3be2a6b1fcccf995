"""``hactl``: the commands, put together. Each subject has a module of its own beside this one.

Imports are inside the commands, since storage nodes start Python slowly: what is imported here costs every
run. Exit codes: :mod:`hactl.cli.exits`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from hactl.cli import (
    agent,
    apply,
    check,
    doctor,
    export,
    host,
    imports,
    manual,
    multipath,
    node,
    resource,
    roles,
    status,
    volume,
)
from hactl.cli.reporting import NODE_FILE, Mode, Reporting

app = typer.Typer(
    name="hactl",
    cls=Reporting,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="High-availability cluster storage on LIO, DRBD and Pacemaker.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 refused (nothing changed), "
        "4 agent or store not reachable (nothing changed), 5 outcome unknown (see: hactl status), "
        "6 looked and found differences (diff) or errors (doctor), 130 interrupted."
    ),
)


def main() -> None:
    """Entry point of the ``hactl`` program."""
    if manual.COMPLETE in os.environ:
        manual.prepare_completion()
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from hactl import __version__

        typer.echo(f"hactl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")] = False,
    node_file: Annotated[
        Path,
        typer.Option(
            "--node-file", envvar="HACTL_NODE_FILE", help="Tells this node's cluster, name and etcd servers."
        ),
    ] = NODE_FILE,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    mode = context.ensure_object(Mode)
    mode.debug, mode.node_file = debug, node_file


for module in (status, roles, apply, imports, check, export, doctor, multipath, manual, agent):
    module.register(app)
app.add_typer(node.app, name="node")
app.add_typer(resource.app, name="resource")
app.add_typer(volume.app, name="volume")
app.add_typer(host.app, name="host")
if importlib.util.find_spec("hactl.cli.cluster") is not None:
    app.add_typer(importlib.import_module("hactl.cli.cluster").app, name="cluster")


if __name__ == "__main__":
    main()
