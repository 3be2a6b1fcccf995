"""``hactl host``: machines that use units."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from hactl.cli.options import Host, Json, ShowSecrets
from hactl.cli.reporting import Mode, begin, named, print_json
from hactl.errors import Refused

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.model.spec import ChapSpec

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Hosts: machines that use units.")

ChapUser = Annotated[
    str | None, typer.Option("--chap-user", metavar="USER", help="The host proves itself by CHAP.")
]
ChapFile = Annotated[
    str | None,
    typer.Option(
        "--chap-password-file",
        metavar="FILE",
        help="Its password: first line of a file (mode 0600), or - for standard input; else it is asked for.",
    ),
]
MutualUser = Annotated[
    str | None,
    typer.Option("--mutual-user", metavar="USER", help="The target proves itself to the host, too."),
]
MutualFile = Annotated[
    str | None,
    typer.Option("--mutual-password-file", metavar="FILE", help="The target's password; as above."),
]


def _credentials(
    mode: Mode, user: str | None, file: str | None, mutual_user: str | None, mutual_file: str | None
) -> ChapSpec | None:
    from hactl.cli import confirm
    from hactl.model.edit import chap

    if user is None:
        if file is not None or mutual_user is not None or mutual_file is not None:
            raise typer.BadParameter("CHAP needs --chap-user")
        return None
    if mutual_file is not None and mutual_user is None:
        raise typer.BadParameter("--mutual-password-file needs --mutual-user")
    password = confirm.password(mode, file, f"CHAP password of {user}").get_secret_value()
    mutual = None
    if mutual_user is not None:
        mutual = confirm.password(mode, mutual_file, f"CHAP password of {mutual_user}").get_secret_value()
    return chap(user, password, mutual_user, mutual)


@app.command()
def add(
    context: typer.Context,
    host: Host,
    initiator: Annotated[
        list[str],
        typer.Option(
            "--initiator", metavar="IQN", help="From its /etc/iscsi/initiatorname.iscsi. Once for each."
        ),
    ],
    chap_user: ChapUser = None,
    chap_password_file: ChapFile = None,
    mutual_user: MutualUser = None,
    mutual_password_file: MutualFile = None,
    as_json: Json = False,
) -> None:
    """Add a host by its initiator names."""
    from hactl.model import edit as edits

    mode = begin(context, as_json, ordering=True)
    credentials = _credentials(mode, chap_user, chap_password_file, mutual_user, mutual_password_file)
    _edit(
        context,
        host,
        f"add host {host}",
        lambda desired: edits.add_host(desired, host, initiator, credentials),
        f"host {host}: added; let it see something: hactl export RESOURCE {host}",
    )


@app.command(name="set")
def set_host(
    context: typer.Context,
    host: Host,
    add_initiator: Annotated[
        list[str] | None, typer.Option("--add-initiator", metavar="IQN", help="Another name of it.")
    ] = None,
    remove_initiator: Annotated[
        list[str] | None, typer.Option("--remove-initiator", metavar="IQN", help="A name it has no more.")
    ] = None,
    chap_user: ChapUser = None,
    chap_password_file: ChapFile = None,
    mutual_user: MutualUser = None,
    mutual_password_file: MutualFile = None,
    no_chap: Annotated[bool, typer.Option("--no-chap", help="It proves itself by its name only.")] = False,
    as_json: Json = False,
) -> None:
    """Change a host's initiator names or its CHAP credentials; sessions that exist go on."""
    from hactl.model import edit as edits

    mode = begin(context, as_json, ordering=True)
    if no_chap and chap_user is not None:
        raise typer.BadParameter("--no-chap and --chap-user contradict each other")
    given = _credentials(mode, chap_user, chap_password_file, mutual_user, mutual_password_file)
    credentials = None if no_chap else (given or edits.KEEP)
    _edit(
        context,
        host,
        f"change host {host}",
        lambda desired: edits.change_host(
            desired, host, add=add_initiator or (), remove=remove_initiator or (), credentials=credentials
        ),
        f"host {host}: changed",
    )


@app.command()
def remove(context: typer.Context, host: Host, as_json: Json = False) -> None:
    """Remove a host that sees nothing any more."""
    from hactl.cli.configuration import edit
    from hactl.model import edit as edits

    begin(context, as_json, ordering=True)
    named("host", host)
    edit(
        context,
        f"remove host {host}",
        lambda desired: edits.remove_host(desired, host),
        f"host {host}: removed",
    )


@app.command(name="list")
def list_hosts(context: typer.Context, show_secrets: ShowSecrets = False, as_json: Json = False) -> None:
    """List the hosts."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import host_document

    begin(context, as_json)
    cluster = read(context).cluster
    documents = [host_document(cluster, h, secrets=show_secrets) for h in cluster.hosts]
    if as_json:
        print_json({"schema": 1, "hosts": documents})
        return
    from hactl.cli import render

    rows = []
    for document in documents:
        chap = document["chap"]
        shown = "-" if chap is None else chap["user"] + (f" {chap['password']}" if show_secrets else "")
        if chap is not None and chap["mutual_user"] is not None:
            shown += f", mutual {chap['mutual_user']}" + (
                f" {chap['mutual_password']}" if show_secrets else ""
            )
        rows.append(
            {
                "name": document["name"],
                "initiators": ", ".join(document["initiators"]),
                "chap": shown,
                "sees": ", ".join(document["exports"]) or "-",
            }
        )
    columns = {"name": "HOST", "initiators": "INITIATORS", "chap": "CHAP", "sees": "SEES"}
    render.listing(rows, columns, "no hosts")


@app.command()
def show(
    context: typer.Context, host: Host, show_secrets: ShowSecrets = False, as_json: Json = False
) -> None:
    """Show a host, and what it sees under which LUNs."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import host_document, lines
    from hactl.model import find

    begin(context, as_json)
    desired = read(context)
    found = find.host(desired, named("host", host))
    document = host_document(desired.cluster, found, secrets=show_secrets)
    if as_json:
        print_json({"schema": 1, **document})
    else:
        typer.echo("\n".join(lines(document)))


@app.command()
def script(
    context: typer.Context, host: Host, show_secrets: ShowSecrets = False, as_json: Json = False
) -> None:
    """Print a shell script that attaches the host to everything it may see: hactl host script H | ssh H sh"""
    from hactl.cli import confirm
    from hactl.cli.configuration import read
    from hactl.cli.host_script import paths
    from hactl.cli.host_script import script as text_of
    from hactl.model import find

    mode = begin(context, as_json)
    desired = read(context)
    found = find.host(desired, named("host", host))
    # A pipe to the host is what it is for; a screen, or a document that may be kept, is not.
    if found.chap is not None and not show_secrets and (as_json or confirm.printing_to_terminal(mode)):
        raise Refused(
            "script-has-secrets",
            f"the script for host {host} contains its CHAP passwords",
            f"pipe it to the host: hactl host script {host} | ssh {host} sh; or add --show-secrets",
        )
    text = text_of(desired.cluster, found)
    if as_json:
        ways = [vars(way) for way in paths(desired.cluster, host)]
        print_json({"schema": 1, "host": host, "paths": ways, "script": text})
    else:
        typer.echo(text, nl=False)


def _edit(context: typer.Context, host: str, what: str, how: Callable[[Desired], Desired], text: str) -> None:
    from hactl.cli.configuration import edit
    from hactl.cli.documents import host_document

    named("host", host)
    edit(context, what, how, text, host=lambda after: host_document(after.cluster, after.cluster.host(host)))
