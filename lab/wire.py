"""Talking to a lab's supervisor: JSON, an object a line, one request a connection.

The request is ``{"op", …}``; answers come until ``{"done"}`` or ``{"error"}``. A connection that ends early
ends the command it asked for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lab.errors import LabError

DOWN_SECONDS = 20.0
"""How long a supervisor may take to end before it is killed."""


def connect(folder: Path) -> socket.socket:
    """A connection to the supervisor of the lab in that folder; LabError when there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(folder / "lab.sock"))
    except OSError as error:
        connection.close()
        raise LabError(f"lab {folder.name!r} is not running: `lab up` starts it") from error
    return connection


def _feed(connection: socket.socket, given: Iterable[bytes]) -> None:
    with contextlib.suppress(OSError):  # the command ended and with it the connection: nobody wants the rest
        for data in given:
            text = base64.b64encode(data).decode()
            connection.sendall(json.dumps({"input": text}).encode() + b"\n")
        connection.sendall(b'{"input": null}\n')


def ask(
    folder: Path, op: str, given: Iterable[bytes] | None = None, **fields: Any
) -> Iterator[dict[str, Any]]:
    """Ask the supervisor; give its answers up to the last. ``given`` is sent along in a thread of its own."""
    with connect(folder) as connection, connection.makefile("rb") as answers:
        try:
            connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            if given is not None:
                # A daemon: it may be reading a terminal or pipe that never gives anything again.
                threading.Thread(target=_feed, args=(connection, given), daemon=True).start()
            for line in iter(answers.readline, b""):
                message = json.loads(line)
                if "done" in message:
                    return
                if "error" in message:
                    raise LabError(f"{fields.get('machine', folder.name)}: {message['error']}")
                yield message
        except OSError:
            pass
        finally:
            # Also while the thread still holds it: the other side is to see the end now.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
    raise LabError(f"lab {folder.name!r} went away; {folder / 'supervisor.log'} may tell why")


def listener(connection: socket.socket) -> int:
    """The supervisor's process id in this PID namespace (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def end(folder: Path) -> None:
    """End the lab in that folder, and with it every process of it; LabError when none runs."""
    with connect(folder) as connection:
        try:
            process = os.pidfd_open(listener(connection))
        except ProcessLookupError:
            return
        try:
            with contextlib.suppress(OSError):
                connection.sendall(b'{"op": "down"}\n')
            if not select.select([process], [], [], DOWN_SECONDS)[0]:
                # The first process of a PID namespace takes all others along.
                signal.pidfd_send_signal(process, signal.SIGKILL)
                select.select([process], [], [])
        finally:
            os.close(process)
