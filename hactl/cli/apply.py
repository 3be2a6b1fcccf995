"""``hactl apply``, ``diff`` and ``dump``: the whole cluster as one YAML file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hactl.cli.exits import Exit
from hactl.cli.options import Destroy, File, Json, ShowSecrets
from hactl.cli.reporting import Mode, begin, print_json, warn

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.model.draft import Difference
    from hactl.model.spec import ClusterSpec


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (apply, diff, dump):
        app.command()(command)


def apply(context: typer.Context, file: File, yes_destroy: Destroy = None, as_json: Json = False) -> None:
    """Make the cluster what a file says; the same file again changes nothing."""
    from hactl.cli.configuration import read

    mode = begin(context, as_json)
    source = source_of(file)
    apply_draft(context, mode, read(context), source, str(file), tuple(yes_destroy or ()))


def apply_draft(
    context: typer.Context,
    mode: Mode,
    now: Desired,
    source: Path | str,
    name: str,
    consented: tuple[str, ...],
) -> None:
    """Make the cluster what a file or text says, and tell what that changed. What would lose its data has to
    be in ``consented``, or is asked for by name."""
    from hactl.cli import confirm
    from hactl.cli.configuration import change
    from hactl.model.draft import diff as differences
    from hactl.model.draft import replace
    from hactl.pacemaker import charge

    wanted = drafted(source, now)
    everything = frozenset(r.name for r in now.cluster.resources)
    # Refusals first: nobody should type a name for what is not possible anyway.
    after = replace(now, wanted, destroy=everything)
    losing = sorted(
        {left.resource for left in set(after.leftovers) - set(now.leftovers) if left.disk is not None}
    )
    if confirm.at_terminal(mode):
        confirm.destruction(mode, tuple(losing), consented, "applying the file: removing data of resource")
        consented = (*consented, *losing)
    mode.ordering = True
    found: list[Difference] = []

    def edit(desired: Desired) -> Desired:
        # Anew for each attempt: what the file leaves out is taken from the state that it is applied to.
        draft = drafted(source, desired)
        found[:] = differences(desired.cluster, draft)
        return replace(desired, draft, destroy=frozenset(consented))

    made, changed = change(context, f"apply {name}", edit)
    if charge.in_charge(now.cluster) and not charge.in_charge(made.cluster):
        warn(f"nobody takes over by itself any more: {'; '.join(charge.reasons(made.cluster))}")
    if mode.json:
        told = [d.as_dict() for d in found]
        document = {"done": f"apply {name}", "changed": changed, "generation": made.generation}
        print_json({"schema": 1, **document, "differences": told})
        return
    _show(found)
    typer.echo(f"{name}: applied" if changed else f"{name}: nothing to change")
    for new in made.cluster.resources:
        if new.name in everything or not new.replicas:
            continue
        if charge.rules(made.cluster, new.name):
            typer.echo(f"{new.name}: not active yet; Pacemaker promotes it when it is UpToDate: hactl status")
            continue
        on = new.preferred or new.replicas[0]
        typer.echo(
            f"{new.name}: not active yet; when hactl status shows it UpToDate: "
            f"hactl promote {new.name} --node {on}"
        )


def diff(context: typer.Context, file: File, as_json: Json = False) -> None:
    """Show what applying a file would change; exit code 6 if it would change anything."""
    from hactl.cli.configuration import read
    from hactl.model.draft import diff as differences

    begin(context, as_json)
    now = read(context)
    found = differences(now.cluster, drafted(source_of(file), now))
    if as_json:
        print_json({"schema": 1, "same": not found, "differences": [d.as_dict() for d in found]})
    else:
        _show(found)
    if found:
        raise typer.Exit(Exit.DIFFERENT)


def dump(context: typer.Context, show_secrets: ShowSecrets = False, as_json: Json = False) -> None:
    """Print the cluster as a file that hactl apply takes; without passwords, which then stay as they are."""
    import yaml

    from hactl.cli.configuration import read
    from hactl.cli.documents import leftover_document
    from hactl.model.draft import dump as text_of

    begin(context, as_json)
    now = read(context)
    text = text_of(now.cluster, secrets=show_secrets)
    if not as_json:
        typer.echo(text, nl=False)
        return
    document = {"schema": 1, "generation": now.generation, "cluster": yaml.safe_load(text)}
    print_json({**document, "leftovers": [leftover_document(left) for left in now.leftovers]})


def source_of(file: Path) -> Path | str:
    """A path, or the text on standard input for ``-``."""
    if str(file) != "-":
        return file
    from hactl.model.tree import MAX_BYTES

    # A line break makes it a text; bytes that are no text must not end in a traceback.
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    return data.decode("utf-8", errors="surrogateescape") + "\n"


def drafted(source: Path | str, now: Desired) -> ClusterSpec:
    """The specification in a file, with what it leaves out taken from the cluster as it is."""
    from hactl.cli.configuration import max_replicas
    from hactl.cli.resource import new_serial
    from hactl.model.draft import draft

    return draft(source, now, serial=new_serial, max_replicas=max_replicas())


def _show(found: Iterable[Difference]) -> None:
    signs = {"added": "+", "removed": "-", "changed": "~"}
    for difference in found:
        typer.echo(f"{signs[difference.kind]} {difference}")
