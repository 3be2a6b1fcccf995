"""Blocking calls that may hang, each in a thread of its own.

``asyncio.to_thread`` has a few threads for everything, which calls that hang in the kernel take from all
others, and it keeps the process from ending until they are over. Starting a thread costs some 0.1 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start(work: Callable[[], T], name: str = "hactl") -> asyncio.Future[T]:
    """Begin ``work`` in a thread called ``name``; the future gets what it returns or raises. Cancelling the
    future does not stop the thread."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(error: BaseException | None, values: list[T]) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(values[0])
        else:
            answer.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        values: list[T] = []
        try:
            values.append(work())
        except BaseException as raised:  # noqa: BLE001  handed over to whoever waits
            error = raised
        # The loop may be gone by the time a call that hung ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, error, values)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises."""
    return await start(work)
