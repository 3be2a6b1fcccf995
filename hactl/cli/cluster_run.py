"""How the commands of ``hactl cluster`` are run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from hactl.cluster.kit import Kit

T = TypeVar("T")


def run(work: Callable[[Kit], Awaitable[T]]) -> T:
    """What ``work`` returns, given what belongs to this machine."""
    import asyncio

    from hactl.cluster.kit import real

    async def all_of_it() -> T:
        return await work(real())

    return asyncio.run(all_of_it())


def teller(as_json: bool) -> Callable[[str], None]:
    """Tells people what is being done, one line each, on standard error."""
    return (lambda _: None) if as_json else (lambda text: typer.echo(f"… {text}", err=True))
