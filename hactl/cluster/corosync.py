"""Corosync's settings as text, from the cluster's nodes; and whose settings a file holds. Pure.

corosync.conf(5), votequorum(5), and corosync's ``exec/votequorum.c`` for what a reload changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from ipaddress import ip_address

from hactl.cluster.layout import Layout
from hactl.errors import Refused
from hactl.model.spec import ClusterSpec, IpAddress

PORT = 5405
"""UDP port of the first link; each further link has the next one (corosync.conf(5), ``mcastport``)."""
KEY_BYTES = 256
"""Of the key that all nodes share; corosync takes 128 to 4096."""
TOKEN = 2000
"""Milliseconds without the token until a node counts as lost; the others agree on it after 1.2 times that
again (``consensus``). Half of it decides that a link is dead, so that the other link is in use before a node
is lost. One second, the default of earlier versions, is less than what a virtual machine may stand still
under load or while it moves, and a loss that was none costs a power cycle. Three seconds, the default now,
cost two seconds more at every real loss."""
MARK = "# Written by hactl"
"""How a file of hactl's begins."""

_TEXT = """\
{mark} from the cluster's list of nodes, which "hactl cluster" and "hactl node" change. Changes made here are
# overwritten. corosync.conf(5)
totem {{
    version: 2
    cluster_name: {cluster}
    transport: knet
    # Several links: the first is in use while it works, then the next.
    link_mode: passive
    keyfile: {key}
    crypto_cipher: aes256
    crypto_hash: sha256
    token: {token}
    # The same for any number of nodes: fifteen on a local network pass the token on within milliseconds.
    token_coefficient: 0
}}

nodelist {{
{nodes}}}

quorum {{
    provider: corosync_votequorum
{two}}}

logging {{
    to_stderr: no
    to_logfile: no
    to_syslog: yes
}}
"""

# wait_for_all is not written: left out, it follows two_node at a reload too, while a written value is read
# at the start only. With it, a node that starts alone has no quorum until it has seen the other, which may
# hold newer data. last_man_standing is not wanted: it lowers the votes that are needed each time a node is
# lost, so that the last of three would go on alone without anybody having said so.
_TWO = (
    "    # Either of two goes on alone if the other is lost, which fencing makes sure of.\n    two_node: 1\n"
)

_ADDRESS = re.compile(r"^\s*(?:ring\d+_addr|bindnetaddr)\s*:\s*(\S+)\s*$", re.MULTILINE)


class Whose(Enum):
    """Whose settings a ``corosync.conf`` has."""

    NOBODY = "nobody's"
    """There is no such file, or it is empty."""
    PACKAGE = "the package's"
    """As installed: a node that is alone with itself."""
    HACTL = "hactl's"
    SOMEBODY = "somebody else's"


def whose(text: str | None) -> Whose:
    """Whose settings these are; None: there is no file."""
    if text is None or not text.strip():
        return Whose.NOBODY
    if text.startswith(MARK):
        return Whose.HACTL
    # Debian's file names one node, at 127.0.0.1: no cluster can be made with such addresses.
    found = [_loopback(address) for address in _ADDRESS.findall(text)]
    return Whose.PACKAGE if found and all(found) else Whose.SOMEBODY


def _loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def render(cluster: ClusterSpec, layout: Layout) -> str:
    """The file, the same on every node. :class:`Refused` as by :func:`links`."""
    return _TEXT.format(
        mark=MARK,
        cluster=cluster.name,
        key=layout.corosync_key,
        token=TOKEN,
        nodes="".join(_nodes(cluster)),
        two=_TWO if len(cluster.nodes) == 2 else "",
    )


def _nodes(cluster: ClusterSpec) -> Iterator[str]:
    used = links(cluster)
    for position, node in enumerate(cluster.nodes):
        rings = "".join(f"        ring{i}_addr: {link[position]}\n" for i, link in enumerate(used))
        yield f"    node {{\n        name: {node.name}\n        nodeid: {node.id}\n{rings}    }}\n"


def links(cluster: ClusterSpec) -> tuple[tuple[IpAddress, ...], ...]:
    """Each link's addresses in the order of the nodes: the cluster network, and the replication network where
    that is another one on all nodes. Corosync wants every node on every link, and one family on a link.

    :class:`Refused` ``corosync-family`` if the cluster addresses are of both families.
    """
    first = tuple(n.addresses.cluster for n in cluster.nodes)
    second = tuple(n.addresses.replication for n in cluster.nodes)
    if len({a.version for a in first}) > 1:
        shown = ", ".join(f"{n.name} {n.addresses.cluster}" for n in cluster.nodes)
        raise Refused(
            "corosync-family",
            f"Corosync cannot mix IPv4 and IPv6 on the cluster network: {shown}",
            "give all nodes cluster addresses of one family",
        )
    if len({a.version for a in second}) > 1 or any(a == b for a, b in zip(first, second, strict=True)):
        return (first,)
    return first, second


def wanted_keys(cluster: ClusterSpec) -> dict[str, str]:
    """What a running corosync has in its map (corosync-cmapctl(8)) once it has read :func:`render`'s text, as
    far as :func:`loaded_keys` picks it out."""
    found: dict[str, str] = {}
    used = links(cluster)
    for position, node in enumerate(cluster.nodes):
        found[f"{node.id}.name"] = node.name
        for i, link in enumerate(used):
            found[f"{node.id}.ring{i}_addr"] = str(link[position])
    if len(cluster.nodes) == 2:
        found["two_node"] = "1"
    return found


_CMAP = re.compile(r"^(?P<key>[\w.]+) \(\w+\) = (?P<value>.*)$", re.MULTILINE)


def loaded_keys(text: str) -> dict[str, str]:
    """What ``corosync-cmapctl`` prints of nodes and ``quorum.two_node``, by node id instead of position."""
    items = {m["key"]: m["value"] for m in _CMAP.finditer(text)}
    found: dict[str, str] = {}
    for key, value in items.items():
        words = key.split(".")
        if words[:2] == ["nodelist", "node"] and len(words) == 4 and words[3] != "nodeid":
            found[f"{items.get('.'.join((*words[:3], 'nodeid')), '?')}.{words[3]}"] = value
    if items.get("quorum.two_node") == "1":
        found["two_node"] = "1"
    return found
