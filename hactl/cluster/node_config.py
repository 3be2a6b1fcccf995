"""``/etc/hactl/node.yaml``: which cluster this machine is in, as which node, and where the store is.

schema: 1
cluster: lab
node: n1
etcd: [https://10.0.0.1:2379, https://10.0.0.2:2379]
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field, ValidationError

from hactl.cluster.layout import Layout, write
from hactl.errors import Refused
from hactl.model.spec import Frozen, IpAddress, Name

SCHEMA = 1
PATH = Layout().node_file
CLIENT_PORT = 2379
PEER_PORT = 2380


def url(address: IpAddress, port: int) -> str:
    """The https URL of a port at an address; IPv6 in brackets."""
    return f"https://[{address}]:{port}" if address.version == 6 else f"https://{address}:{port}"


def host_port(endpoint: str) -> tuple[IpAddress, int]:
    """Address and port of an https URL; :class:`ValueError` if it is something else."""
    parts = urlsplit(endpoint)
    if parts.scheme != "https" or parts.hostname is None or parts.port is None or parts.path or parts.query:
        raise ValueError(f"{endpoint!r} is not of the form https://ADDRESS:PORT")
    return ip_address(parts.hostname), parts.port


def _endpoint(endpoint: str) -> str:
    host_port(endpoint)
    return endpoint


class NodeConfig(Frozen):
    """This machine's place: ``etcd`` are the client URLs of the store's members."""

    cluster: Name
    node: Name
    etcd: tuple[Annotated[str, AfterValidator(_endpoint)], ...] = Field(min_length=1)


def load(path: Path = PATH) -> NodeConfig:
    """This machine's place in its cluster.

    :class:`Refused` ``not-in-cluster`` if there is no such file, ``node-file`` if it cannot be understood,
    ``schema-newer`` if a newer hactl wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refused(
            "not-in-cluster",
            f"this machine is in no cluster: there is no {path}",
            "make one with: hactl cluster init NAME; or join one with: hactl cluster join",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from None
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise _damaged(path, "it has no schema number")
    if value["schema"] > SCHEMA:
        raise Refused(
            "schema-newer",
            f"{path} has schema {value['schema']}, and this hactl knows up to {SCHEMA}",
            "install the hactl that the other nodes have",
        )
    try:
        return NodeConfig.model_validate({k: v for k, v in value.items() if k != "schema"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{where}: {first['msg']}") from None


def save(config: NodeConfig, path: Path = PATH) -> None:
    """Write it whole, for root only."""
    value = {"schema": SCHEMA, **config.model_dump(mode="json")}
    write(path, yaml.safe_dump(value, sort_keys=False), 0o600)


def _damaged(path: Path, why: str) -> Refused:
    return Refused(
        "node-file", f"{path} cannot be understood: {why}", "its form is in hactl's manual; put it right"
    )
