"""Passes connections on to the same port number of another network namespace.

Arguments: ``FD:PORT`` each, a listening socket that was inherited and the port on 127.0.0.1 it stands for. A
socket stays in the namespace it was made in, so whoever starts this with nsenter(1) has a foot in both.
"""

import asyncio
import contextlib
import socket
import sys
from functools import partial


async def main() -> None:
    for argument in sys.argv[1:]:
        descriptor, port = map(int, argument.split(":"))
        await asyncio.start_server(partial(forward, port), sock=socket.socket(fileno=descriptor))
    print("ready", flush=True)
    await asyncio.Event().wait()


async def forward(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Handle a connection."""
    with contextlib.suppress(OSError):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        # The end of either way is the end of both, as when a program that has the connection dies.
        ways = [asyncio.create_task(copy(reader, back)), asyncio.create_task(copy(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        back.close()
    writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(main())
