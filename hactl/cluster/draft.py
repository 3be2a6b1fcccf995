"""A node as it is described when it makes or joins a cluster: from options, with defaults where there is
only one possibility. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hactl.errors import Refused
from hactl.model.names import address, valid_name
from hactl.model.spec import Addresses, Frozen, IpAddress, Name, NodeSpec, PoolSpec

_POOL_FORM = "a pool is written NAME=lvm:VG, NAME=lvm-thin:VG/POOL or NAME=files:PATH"


class Draft(Frozen):
    """A node without the id that the cluster gives it."""

    name: Name
    addresses: Addresses
    failure_domain: Name | None = None
    pools: tuple[PoolSpec, ...] = ()

    def node(self, number: int) -> NodeSpec:
        """The node with that id."""
        return NodeSpec(
            name=self.name,
            id=number,
            addresses=self.addresses,
            failure_domain=self.failure_domain,
            pools=self.pools,
        )


@dataclass(frozen=True)
class NodeOptions:
    """What somebody wrote on the command line; None or empty where nothing."""

    node: str | None = None
    cluster_address: str | None = None
    replication_address: str | None = None
    storage_addresses: tuple[str, ...] = ()
    failure_domain: str | None = None
    pools: tuple[str, ...] = ()


def draft(options: NodeOptions, hostname: str, addresses: Sequence[IpAddress]) -> Draft:
    """The node that options describe, on a machine with these addresses.

    :class:`Refused` with ``node-name``, ``address-unusable``, ``address-ambiguous`` or ``pool-option``.
    """
    name = options.node if options.node is not None else hostname.partition(".")[0]
    try:
        valid_name(name)
    except ValueError as error:
        whose = "the node" if options.node is not None else "this machine's host name"
        raise Refused("node-name", f"{whose}: {error}", "name the node with --node") from None
    pools = tuple(pool(text) for text in options.pools)
    twice = sorted({p.name for p in pools if sum(q.name == p.name for q in pools) > 1})
    if twice:
        raise Refused("pool-option", f"the pool {twice[0]} is given twice", "give each a name of its own")
    if options.failure_domain is not None:
        try:
            valid_name(options.failure_domain)
        except ValueError as error:
            raise Refused("failure-domain", f"the failure domain: {error}", "give it another name") from None
    cluster = _address("--cluster-address", options.cluster_address, addresses)
    replication = _address("--replication-address", options.replication_address, addresses)
    storage = tuple(_parsed("--storage-address", text) for text in options.storage_addresses)
    return Draft(
        name=name,
        addresses=Addresses(
            cluster=cluster,
            replication=replication,
            storage=storage or (_address("--storage-address", None, addresses),),
        ),
        failure_domain=options.failure_domain,
        pools=pools,
    )


def pool(text: str) -> PoolSpec:
    """A pool from ``NAME=KIND:PLACE``; :class:`Refused` ``pool-option`` if it is not one."""
    name, equals, rest = text.partition("=")
    kind, colon, place = rest.partition(":")
    if not equals or not colon or not place:
        raise Refused("pool-option", f"{text!r} is not a pool", _POOL_FORM)
    value: dict[str, Any]
    if kind == "lvm":
        value = {"lvm": {"vg": place}}
    elif kind == "lvm-thin":
        vg, slash, thin = place.partition("/")
        if not slash:
            raise Refused("pool-option", f"{text!r} names no thin pool", _POOL_FORM)
        value = {"lvm_thin": {"vg": vg, "thin_pool": thin}}
    elif kind == "files":
        value = {"files": {"path": place}}
    else:
        raise Refused("pool-option", f"{text!r}: there is no kind of pool {kind!r}", _POOL_FORM)
    try:
        return PoolSpec.model_validate({"name": name, **value})
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused("pool-option", f"{text!r}: {first['msg']}", _POOL_FORM) from None


def _address(option: str, text: str | None, addresses: Sequence[IpAddress]) -> IpAddress:
    if text is not None:
        return _parsed(option, text)
    # One network with both families is still one network: then IPv4, as the shorter one to read.
    v4: list[IpAddress] = [a for a in addresses if a.version == 4]
    candidates = v4 or list(addresses)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise Refused(
            "address-ambiguous",
            "this machine has no address that others can reach",
            f"set one up, or name it with {option}",
        )
    shown = ", ".join(str(a) for a in addresses)
    raise Refused(
        "address-ambiguous", f"this machine has several addresses: {shown}", f"choose with {option}"
    )


def _parsed(option: str, text: str) -> IpAddress:
    try:
        return address(text)
    except ValueError as error:
        raise Refused("address-unusable", f"{option}: {error}", "write the address alone") from None
