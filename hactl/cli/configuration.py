"""The cluster's configuration, read from and changed in the store itself, without any agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from hactl.cli.exits import UNREACHABLE
from hactl.cli.reporting import Mode, print_json, warn
from hactl.errors import Refused

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.store.protocol import Store

T = TypeVar("T")

STILL_WORKS = (
    "nothing was changed; what exists goes on serving, and status, plan, promote, demote and switchover "
    "still work through the agents. Configuration waits until a majority of etcd's members answer: "
    "hactl cluster status; systemctl status hactl-etcd"
)


def read(context: typer.Context) -> Desired:
    """The desired state of the cluster, as it is in the store now."""

    async def work(store: Store, cluster: str, _: str) -> Desired:
        from hactl.store import desired

        return await desired.read(store, cluster)

    return _run(context.obj, work)


def look(context: typer.Context, work: Callable[[Store, str, str], Awaitable[T]]) -> T:
    """What ``work`` finds in the store; it is given the names of the cluster and of this node, too."""
    return _run(context.obj, work)


def change(context: typer.Context, what: str, edit: Callable[[Desired], Desired]) -> tuple[Desired, bool]:
    """Carry out one change of the desired state: what it is then, and whether anything differed.

    ``what`` is one line for the record, without secrets. ``edit`` may be called several times, with a newer
    state each time.
    """
    before: list[Desired] = []

    def noted(desired: Desired) -> Desired:
        before[:] = [desired]
        return edit(desired)

    async def work(store: Store, cluster: str, node: str) -> Desired:
        from hactl.store import desired

        return await desired.change(
            store, cluster, noted, what=what, origin=desired.Origin(node), max_replicas=max_replicas()
        )

    after = _run(context.obj, work)
    return after, not after.same(before[0])


def edit(
    context: typer.Context,
    what: str,
    how: Callable[[Desired], Desired],
    text: str,
    **documents: Callable[[Desired], Any],
) -> Desired:
    """Carry out a change and tell it: ``text`` for people, ``documents`` of what came of it for programs."""
    after, changed = change(context, what, how)
    tell(context.obj, what, after, changed, text, **documents)
    return after


def tell(
    mode: Mode, what: str, after: Desired, changed: bool, text: str, **documents: Callable[[Desired], Any]
) -> None:
    """Print the outcome of a change."""
    if mode.json:
        made = {name: make(after) for name, make in documents.items()}
        print_json({"schema": 1, "done": what, "changed": changed, "generation": after.generation, **made})
        return
    typer.echo(text if changed else f"nothing to change: {text}")
    if changed and not _agent_runs():
        warn(
            "this node's agent does not run: here nothing follows the change until it does (systemctl start "
            "hactl-agent); the other nodes' agents do"
        )


def _agent_runs(table: Path = Path("/proc/net/unix")) -> bool:
    """Whether somebody has the agent's socket open (proc(5)); true where that cannot be told."""
    import os

    from hactl.cli.options import SOCKET

    socket = os.environ.get("HACTL_SOCKET") or str(SOCKET)
    try:
        return any(line.endswith(f" {socket}") for line in table.read_text().splitlines())
    except (OSError, UnicodeDecodeError):
        return True


def max_replicas(told: Path = Path("/proc/drbd")) -> int | None:
    """How many replicas the DRBD of this node can have, None for no limit or where that cannot be told."""
    try:
        text = told.read_text()
    except OSError:
        return None
    return 2 if text.startswith("version: 8.") else None


def _run(mode: Mode, work: Callable[[Store, str, str], Awaitable[T]]) -> T:
    import asyncio

    async def with_store() -> T:
        async with _open(mode) as (store, cluster, node):
            return await work(store, cluster, node)

    try:
        return asyncio.run(with_store())
    except Refused as error:
        if error.code not in UNREACHABLE:
            raise
        hint = f"{error.hint}; {STILL_WORKS}" if error.hint else STILL_WORKS
        raise Refused(error.code, error.message, hint) from None


@asynccontextmanager
async def _open(mode: Mode) -> AsyncIterator[tuple[Store, str, str]]:
    if mode.open_store is not None:
        yield mode.open_store()
        return
    from hactl.cluster import node_config
    from hactl.cluster.layout import Layout
    from hactl.store.etcd import EtcdStore, Tls

    place = node_config.load(mode.node_file)
    files = Layout().certificates
    store = EtcdStore(place.etcd, Tls(files.ca, files.certificate, files.key))
    try:
        yield store, place.cluster, place.node
    finally:
        await store.close()
