"""``lab``: the command line of the lab."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lab import launch, product
from lab.api import Lab, Machine
from lab.errors import LabError

app = typer.Typer(
    help="A cluster of real machines on one host.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Option("--lab", envvar="LAB_NAME", help="Which lab; several run side by side.")]
CHUNK = 1 << 16


@app.command()
def up(
    lab: Name = "default",
    nodes: Annotated[int | None, typer.Option(min=1, max=9, help="Number of storage nodes; 3.")] = None,
    client: Annotated[bool | None, typer.Option("--client/--no-client", help="A client or none.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with empty disks.")] = False,
    machines: Annotated[str | None, typer.Option(help="auto, or qemu for all machines.")] = None,
    install: Annotated[bool, typer.Option(help="Put the working tree's hactl on the nodes.")] = True,
) -> None:
    """Start the lab: build images if they are missing, boot what is off, install the working tree's hactl."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("lab", total=1.0)

        def show(text: str, done: float) -> None:
            bar.update(task, description=text[:60], completed=done)

        running = Lab.up(
            lab, nodes=nodes, client=client, fresh=fresh, kinds=machines, keep=True, progress=show
        )
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
    """Run a program in a machine; input, output and exit status are passed through.

    A single word is a line for the shell. Standard input is passed on as the program reads it, unless it is a
    terminal: a loop that reads a file itself has to give </dev/null here, as with ssh.
    """
    if command[:1] == ["--"]:
        command = command[1:]
    argv = ["bash", "-c", command[0]] if len(command) == 1 else command
    given = None if sys.stdin is None or _is_device(sys.stdin.fileno()) else _pieces(sys.stdin.fileno())
    for kind, data in _machine(lab, machine).stream(argv, stdin=given):
        if isinstance(data, bytes):
            stream = sys.stdout.buffer if kind == "out" else sys.stderr.buffer
            stream.write(data)
            stream.flush()
        else:
            raise typer.Exit(data)


def _is_device(file: int) -> bool:
    """Whether it is a terminal or the null device, and not a file or something that others write to."""
    return stat.S_ISCHR(os.fstat(file).st_mode)


def _pieces(file: int) -> Iterator[bytes]:
    """What is in a file or comes through a pipe, until its end."""
    while data := os.read(file, CHUNK):
        yield data


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION")],
    lab: Name = "default",
) -> None:
    """Copy a file into a machine (FILE MACHINE:PATH) or out of one (MACHINE:PATH FILE)."""
    machine, colon, path = destination.partition(":")
    if colon:
        file = Path(source)
        _machine(lab, machine).write(path, file.read_bytes(), file.stat().st_mode & 0o777)
        return
    machine, colon, path = source.partition(":")
    if not colon:
        raise LabError("neither is in a machine: write MACHINE:PATH for the one that is")
    target = Path(destination)
    target = target / Path(path).name if target.is_dir() else target
    target.write_bytes(_machine(lab, machine).read(path))


@app.command()
def crash(machine: str, lab: Name = "default") -> None:
    """Power a machine off at once."""
    _machine(lab, machine).crash()


@app.command()
def panic(machine: str, lab: Name = "default") -> None:
    """Have a machine's kernel panic: in user-mode Linux it is off then, in QEMU it hangs."""
    _machine(lab, machine).panic()


@app.command()
def bmc(
    machine: Annotated[str | None, typer.Argument(help="All machines if not given.")] = None,
    lab: Name = "default",
    show_secrets: Annotated[bool, typer.Option("--show-secrets", help="The passwords, too.")] = False,
) -> None:
    """How to reach the machines' BMCs. They speak IPMI 2.0 on the cluster network."""
    found = Lab(lab)
    table = Table("machine", "address", "user", "password" if show_secrets else "file with the password")
    for m in found.machines.values() if machine is None else [found[machine]]:
        secret = m.bmc.password if show_secrets else str(m.bmc.password_file)
        table.add_row(m.name, m.bmc.address, m.bmc.user, secret)
    Console(soft_wrap=True).print(table)


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
    """Part machines from the rest of a network: cluster, replication or storage; or their BMCs: bmc."""
    Lab(lab).cut(network, *machines)


@app.command()
def heal(lab: Name = "default") -> None:
    """Undo every cut."""
    Lab(lab).heal()


@app.command()
def logs(machine: str, lab: Name = "default") -> None:
    """What a machine's console showed, earlier boots included, and its journal if it is up."""
    found = _machine(lab, machine)
    print(found.console, flush=True)
    if found.state == "up":
        print("--- journal of this boot")
        print(found.execute("journalctl --no-pager -o short-precise").out)


@app.command()
def install(lab: Name = "default") -> None:
    """Put the working tree's hactl on the nodes once more."""
    product.install(Lab(lab))


@app.command()
def down(
    lab: Name = "default", remove: Annotated[bool, typer.Option("--remove", help="Its disks too.")] = False
) -> None:
    """End the lab. No lab running is no error."""
    folder = launch.folder_of(lab)
    with contextlib.suppress(LabError):
        Lab(lab).down()
    if remove:
        shutil.rmtree(folder, ignore_errors=True)


def _machine(lab: str, name: str) -> Machine:
    return Lab(lab)[name]


def main() -> int:
    """Entry point of the console script."""
    try:
        app(standalone_mode=True)
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip() if isinstance(error.stderr, bytes) else ""
        print(f"lab: {error.cmd[0]} failed with status {error.returncode}: {words}", file=sys.stderr)
        return 1
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
