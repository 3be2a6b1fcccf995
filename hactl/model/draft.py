"""The whole cluster as one YAML file: written out, read as a draft of what shall be, compared, applied. Pure,
but for :func:`draft` reading its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hactl.model import explain, load, tree
from hactl.model.check import Problem, check
from hactl.model.desired import Desired
from hactl.model.difference import Difference, diff
from hactl.model.edit_replace import replace
from hactl.model.edit_resources import Serials
from hactl.model.fill import fill
from hactl.model.records import SETTINGS
from hactl.model.size import format_size
from hactl.model.spec import ClusterSpec, Frozen, HostSpec, NodeSpec

__all__ = ["Difference", "diff", "draft", "dump", "replace"]


def draft(
    source: Path | str, current: Desired, *, serial: Serials, max_replicas: int | None = None
) -> ClusterSpec:
    """The specification in a file or text (as for :func:`hactl.model.load.load`) that may leave out what
    :func:`hactl.model.fill.fill` knows or allocates.

    Raises :class:`hactl.model.load.SpecError` with every finding and its line; also with what leftovers still
    have.
    """
    data, name, mode = load.contents(source)

    def judged(value: tree.Value) -> load.Judgement:
        spec, problems = explain.validate(fill(value, current, serial))
        if spec is None:
            return None, problems
        problems = check(spec, current.leftovers, max_replicas=max_replicas, before=current.cluster)
        if spec.name != current.cluster.name:
            other = f"this is cluster {current.cluster.name}, and a cluster is not renamed"
            problems = (Problem(("name",), "cluster-other", other, "is it the right file?"), *problems)
        return spec, problems

    return load.judge(data, name, mode, judged, command="diff -f")


def dump(cluster: ClusterSpec, *, secrets: bool = False) -> str:
    """The cluster as a YAML text that, applied to it, changes nothing: :func:`draft` makes the same of it.

    Without ``secrets`` it has no passwords, and draft takes them from the cluster. Serials that follow
    from names are written out, so that they stay when the file is applied elsewhere.
    """
    value: dict[str, Any] = _plain(cluster, include={"name", *SETTINGS})
    value["nodes"] = [_node(node, secrets) for node in cluster.nodes]
    if cluster.hosts:
        value["hosts"] = [_host(host, secrets) for host in cluster.hosts]
    if cluster.resources:
        value["resources"] = [
            {
                **_plain(resource, exclude={"exports", "volumes"}),
                **({"exports": resource.exports} if resource.exports else {}),
                "volumes": [
                    {
                        **_plain(volume),
                        "size": _size(volume.size),
                        "serial": cluster.serial(resource, volume),
                    }
                    for volume in resource.volumes
                ],
            }
            for resource in cluster.resources
        ]
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )
    has = any(h.chap for h in cluster.hosts) or any(n.fencing and n.fencing.secrets for n in cluster.nodes)
    head = "# Passwords are in here: chmod 600 this file.\n" if secrets and has else ""
    return head + text


class _Dumper(yaml.SafeDumper):
    """Without anchors and aliases, which people would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
        return True


def _plain(value: Frozen, **options: Any) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_defaults=True, **options)


def _size(size: int) -> str | int:
    text = format_size(size)
    return int(text) if text.isdigit() else text


def _node(node: NodeSpec, secrets: bool) -> dict[str, Any]:
    value = _plain(node, exclude={"fencing": {"secrets"}})
    if secrets and node.fencing is not None and node.fencing.secrets:
        value["fencing"]["secrets"] = {k: s.get_secret_value() for k, s in node.fencing.secrets.items()}
    return value


def _host(host: HostSpec, secrets: bool) -> dict[str, Any]:
    value = _plain(host, exclude={"chap": {"password", "mutual_password"}})
    if secrets and host.chap is not None:
        value["chap"]["password"] = host.chap.password.get_secret_value()
        if host.chap.mutual_password is not None:
            value["chap"]["mutual_password"] = host.chap.mutual_password.get_secret_value()
    return value
