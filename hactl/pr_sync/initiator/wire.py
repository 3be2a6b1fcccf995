"""PDUs on a TCP connection, with their digests (RFC 7143 11.2)."""

from __future__ import annotations

import asyncio
import contextlib

from hactl.pr_sync.initiator.digest import digest
from hactl.pr_sync.initiator.pdu import HEADER, Pdu, PduError, decode, encode, sizes

LOGIN_RECEIVE = 8192
"""Bytes of a data segment during login (RFC 7143 13.12)."""


class Wire:
    """One connection. One task at a time may read; writing is synchronous, so PDUs do not interleave.

    ``header_digest``, ``data_digest`` and ``max_receive`` are set when the login ends.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.header_digest = False
        self.data_digest = False
        self.max_receive = LOGIN_RECEIVE

    def write(self, pdu: Pdu) -> None:
        """Hand a PDU to the connection; an error shows up in :meth:`drain` or :meth:`read`."""
        header, data = encode(pdu)
        parts = [header]
        if self.header_digest:
            parts.append(digest(header))
        if data:
            parts.append(data)
            if self.data_digest:
                parts.append(digest(data))
        self._writer.write(b"".join(parts))

    async def drain(self) -> None:
        """Wait while the connection takes no more; raises OSError."""
        await self._writer.drain()

    async def read(self) -> Pdu:
        """The next PDU. Raises EOFError at the end of the connection, OSError, :class:`PduError`."""
        header = await self._reader.readexactly(HEADER)
        size = sizes(header)
        additional = await self._reader.readexactly(size.additional)
        if self.header_digest and await self._reader.readexactly(4) != digest(header + additional):
            raise PduError("a header digest that does not match")
        if size.data > self.max_receive:
            raise PduError(f"{size.data} bytes of data, more than the {self.max_receive} announced")
        data = await self._reader.readexactly(size.data + size.padding)
        if self.data_digest and data and await self._reader.readexactly(4) != digest(data):
            raise PduError("a data digest that does not match")
        return decode(header, data[: size.data])

    def abort(self) -> None:
        """Reset the connection; nothing written and not yet sent goes out."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection and wait until it is."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
