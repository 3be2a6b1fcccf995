"""What the service manager keeps for a service: sd_notify(3), sd_listen_fds(3), FileDescriptorStoreMax=.

Written by hand for the descriptors and for start-up time; :mod:`hactl.agents.notify` is for states alone.
"""

from __future__ import annotations

import array
import os
import socket


def handed_over() -> dict[str, int]:
    """Descriptors that the service manager kept or made for this process, by name."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for index, name in enumerate(names[: int(os.environ.get("LISTEN_FDS", "0"))]):
        os.set_inheritable(3 + index, False)
        found[name] = 3 + index
    return found


def notify(state: str, *descriptors: int) -> bool:
    """Send a state. False: there is no service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        channel.sendmsg([state.encode()], rights)
    return True


def store(name: str, descriptor: int) -> bool:
    """Have a descriptor kept through this process' death, under a name. False: nobody is there to do it.

    Returns once it is kept (BARRIER=1): the manager drops messages of processes that it has seen die.
    """
    if not notify(f"FDSTORE=1\nFDNAME={name}", descriptor):
        return False
    read, write = os.pipe()
    try:
        notify("BARRIER=1", write)
    finally:
        os.close(write)
    try:
        os.read(read, 1)
    finally:
        os.close(read)
    return True


def forget(name: str) -> None:
    """Have the manager close what it kept under a name."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
