"""``hactl import``: what targetcli configured on a single node, as resources of the cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Json
from hactl.cli.reporting import begin, named, print_json
from hactl.cli.resource import disks_of
from hactl.errors import Refused

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.model.takeover import Takeover


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="import")(import_saveconfig)


def import_saveconfig(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="targetcli's saveconfig.json; - for standard input.")
    ],
    node: Annotated[
        str,
        typer.Option(
            "--node", metavar="NODE", help="The node that has the disks: this one, to know their sizes."
        ),
    ],
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="PATH=BYTES",
            help="What hosts saw of a device that was grown since. Once for each.",
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Keep the data on the disks, and copy them to the other replica."),
    ] = False,
    copy: Annotated[
        str | None,
        typer.Option("--copy-to", metavar="NODE", help="The node that gets a second, empty replica."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="POOL", help="The pool on it that disks are created in.")
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="PATH=PATH",
            help="A device in the file, and the disk on it that is for its copy. Once for each.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out the targets that cannot be taken over.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Take over targets of a single node from targetcli: names, LUNs, serials, hosts and CHAP stay."""
    from hactl.cli.configuration import change, read
    from hactl.model.saveconfig import Store, parse
    from hactl.model.takeover import take_over
    from hactl.model.takeover_data import Keeping

    mode = begin(context, as_json)
    named("node", node)
    if copy is None and (pool or disk):
        raise typer.BadParameter("--pool and --disk are for --copy-to")
    if copy is not None:
        named("node", copy)
    data = contents(file)
    seen = _seen(size or ())
    devices = [s.device for s in parse(data).stores.values() if isinstance(s, Store)]
    sizes = device_sizes(devices)
    growing = tuple(d for d in devices if adopt and logical_volume(d))
    keeping = Keeping(adopt, growing, copy, disks_of(disk, "PATH") or {}, pool)

    def taken(desired: Desired) -> Takeover:
        return take_over(data, desired, node, sizes=sizes, seen=seen, keeping=keeping)

    found = taken(read(context))
    if not found.complete and not partial and not dry_run:
        if not as_json:
            _tell(found, err=True)
        skipped = sum(remark.skipped for remark in found.remarks)
        raise Refused(
            "import-incomplete",
            f"{skipped} of the targets in {file} cannot be taken over; nothing was changed",
            "put right what is told of them, or leave them out: --partial",
        )
    changed, generation = False, found.desired.generation
    if not dry_run:
        mode.ordering = True
        results: list[Takeover] = []

        def edit(desired: Desired) -> Desired:
            results[:] = [taken(desired)]
            return results[0].desired

        after, changed = change(context, f"import {file.name} on {node}", edit)
        found, generation = results[0], after.generation
    if as_json:
        print_json(
            {
                "schema": 1,
                "done": "import",
                "changed": changed,
                "generation": generation,
                "resources": dict(found.resources),
                "remarks": [remark.as_dict() for remark in found.remarks],
            }
        )
        return
    _tell(found, err=False)
    if dry_run:
        typer.echo("nothing was changed")


def _tell(found: Takeover, *, err: bool) -> None:
    for name, iqn in found.resources.items():
        typer.echo(f"{iqn}: resource {name}", err=err)
    for remark in found.remarks:
        typer.echo(f"{'left out: ' if remark.skipped else ''}{remark} [{remark.code}]", err=err)


def contents(file: Path) -> bytes:
    """The bytes of a file, or of standard input for ``-``; at most one more than are read."""
    from hactl.model.saveconfig import MAX_BYTES

    if str(file) == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise Refused(
            "file-unreadable", f"{file} cannot be read: {error.strerror}", "check the path"
        ) from None


def device_sizes(paths: Sequence[str]) -> Mapping[str, int]:
    """Bytes of the block devices among ``paths`` on this machine; others are left out."""
    import stat

    found = {}
    for path in paths:
        try:
            # O_NONBLOCK: the path comes from a file, and opening a FIFO would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            continue
        try:
            if stat.S_ISBLK(os.fstat(descriptor).st_mode):
                found[path] = os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    return found


def logical_volume(path: str, sys_block: Path = Path("/sys/class/block")) -> bool:
    """Whether a device is a logical volume, which an agent can enlarge, by what LVM has noted with
    device-mapper (``LVM-`` and its ids)."""
    try:
        uuid = (sys_block / Path(path).resolve().name / "dm" / "uuid").read_text()
    except (OSError, ValueError):
        return False
    return uuid.startswith("LVM-")


def _seen(words: Sequence[str]) -> dict[str, int]:
    from hactl.model.size import parse_size

    found = {}
    for word in words:
        path, equals, size = word.partition("=")
        try:
            if not equals:
                raise ValueError(f"{word!r} is not of the form PATH=BYTES")
            found[path] = parse_size(size)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return found
