"""``lab``: the command line of the lab."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lab import product
from lab.api import Lab, LabError
from lab.images import BuildError

app = typer.Typer(help="A cluster of real machines on one host.", no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Option("--lab", envvar="LAB_NAME", help="Which lab; several run side by side.")]


@app.command()
def up(
    lab: Name = "default",
    nodes: Annotated[int, typer.Option(min=1, max=9, help="Number of storage nodes.")] = 3,
    fresh: Annotated[bool, typer.Option(help="Begin with empty disks.")] = False,
    machines: Annotated[str, typer.Option(help="auto, or qemu for all machines.")] = "auto",
    install: Annotated[bool, typer.Option(help="Put the working tree's hactl on the nodes.")] = True,
) -> None:
    """Start the lab: build images if they are missing, boot what is off, install hactl from the working tree."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("lab", total=1.0)

        def show(text: str, done: float) -> None:
            bar.update(task, description=text[:60], completed=done)

        running = Lab.up(lab, nodes=nodes, fresh=fresh, kinds=machines, keep=True, progress=show)
        if install:
            show("installing hactl", 0.9)
            product.install(running)
    status(lab)


@app.command()
def status(
    lab: Name = "default", as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Machines, their state and addresses, and what is cut."""
    told = Lab(lab).status()
    if as_json:
        print(json.dumps(told, indent=2))
        return
    table = Table("machine", "kind", "state", "boots", "addresses")
    for m in told["machines"]:
        addresses = ", ".join(a[0].partition("/")[0] for a in m["addresses"].values())
        table.add_row(m["name"], m["kind"], m["state"], str(m["boots"]), addresses)
    Console().print(table)
    for tap, bridge in told["cut"].items():
        print(f"cut: {tap} is on {bridge or 'no network'}")


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(machine: str, command: Annotated[list[str], typer.Argument()], lab: Name = "default") -> None:
    """Run a program in a machine; output and exit status are passed through. A single word is a line for the shell."""
    if command[:1] == ["--"]:
        command = command[1:]
    argv = ["bash", "-c", command[0]] if len(command) == 1 else command
    stdin = None if sys.stdin is None or sys.stdin.isatty() or not _has_input() else sys.stdin.buffer.read()
    for kind, data in _machine(lab, machine).stream(argv, stdin=stdin):
        if isinstance(data, bytes):
            os.write(1 if kind == "out" else 2, data)
        else:
            raise typer.Exit(data)


def _has_input() -> bool:
    """Whether standard input is a file or a pipe with something in it, and not merely an open descriptor."""
    import select

    return bool(select.select([sys.stdin], [], [], 0)[0])


@app.command()
def copy(source: Path, destination: Annotated[str, typer.Argument(metavar="MACHINE:PATH")], lab: Name = "default") -> None:
    """Copy a file into a machine."""
    machine, _, path = destination.partition(":")
    _machine(lab, machine).write(path, source.read_bytes(), source.stat().st_mode & 0o777)


@app.command()
def crash(machine: str, lab: Name = "default") -> None:
    """Power a machine off at once."""
    _machine(lab, machine).crash()


@app.command()
def freeze(machine: str, lab: Name = "default") -> None:
    """Stop a machine in the middle of everything."""
    _machine(lab, machine).freeze()


@app.command()
def thaw(machine: str, lab: Name = "default") -> None:
    """Let a frozen machine go on."""
    _machine(lab, machine).thaw()


@app.command()
def start(machine: str, lab: Name = "default") -> None:
    """Power a machine on."""
    _machine(lab, machine).start()


@app.command()
def cut(network: str, machines: list[str], lab: Name = "default") -> None:
    """Part machines from the rest of a network: cluster, replication or storage."""
    Lab(lab).cut(network, *machines)


@app.command()
def heal(lab: Name = "default") -> None:
    """Undo every cut."""
    Lab(lab).heal()


@app.command()
def logs(machine: str, lab: Name = "default") -> None:
    """What a machine's consoles showed, and its journal if it is up."""
    found = _machine(lab, machine)
    print(found.console)
    if found.state == "up":
        print(found.execute("journalctl --no-pager -o short-precise").out)


@app.command()
def install(lab: Name = "default") -> None:
    """Put the working tree's hactl on the nodes once more."""
    product.install(Lab(lab))


@app.command()
def down(lab: Name = "default", remove: Annotated[bool, typer.Option(help="Its disks too.")] = False) -> None:
    """End the lab. No lab running is no error."""
    from lab.api import HOME

    try:
        Lab(lab).down()
    except LabError:
        pass
    if remove:
        shutil.rmtree(HOME / lab, ignore_errors=True)


def _machine(lab: str, name: str):  # type: ignore[no-untyped-def]
    found = Lab(lab)
    if name not in found.machines:
        raise LabError(f"no machine {name!r}: there are {', '.join(found.machines)}")
    return found[name]


def main() -> int:
    """Entry point of the console script."""
    try:
        app(standalone_mode=True)
    except (LabError, BuildError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0
