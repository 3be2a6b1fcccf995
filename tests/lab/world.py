"""What there is on the nodes against what the store says there shall be.

The nodes are read with the system's own tools and the store through ``hactl dump`` and etcdctl, so that
nothing that hactl overlooks is overlooked here too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from typing import Any

from lab.api import Lab, Machine, in_parallel

LIO = "/sys/kernel/config/target"
CONTROL = "iqn.2026-11.io.hactl:reservations"
"""The agents' own initiator."""
_LOOK = rf"""
say() {{ while read -r line; do echo "$1 $line"; done; }}
dmsetup ls | awk '/^hactl\./ {{ print $1 }}' | say gate
drbdsetup events2 --now | awk '$1 == "exists" && $2 == "resource" {{ print $3 }}' | say drbd
drbdsetup events2 --now | awk '$1 == "exists" && $2 == "device" {{ print $3, $4, $5 }}' | say drbd
ls /etc/drbd.d | grep '^hactl-' | say file
cd {LIO}/iscsi && find iqn.* -maxdepth 0 | say target
find iqn.* -mindepth 3 -maxdepth 3 -path '*/lun/lun_*' | say lun
find iqn.* -mindepth 3 -maxdepth 3 -path '*/acls/*' | say acl
find iqn.* -mindepth 4 -maxdepth 4 -path '*/acls/*/lun_*' | say mapped
find iqn.* -mindepth 3 -maxdepth 3 -path '*/np/*' | say portal
cd {LIO}/core && find . -mindepth 2 -maxdepth 2 -name 'hactl.*' -printf '%f\n' | say backstore
ls /run/hactl/targets | say ledger
ls /run/hactl/journal | say journal
ls /var/lib/hactl/journal | say lasting
losetup --noheadings --list --output BACK-FILE | grep hactl | say loop
ls -A /dev/hactl | say link
lvs --noheadings --separator / --options vg_name,lv_name | awk '/\/hactl\./ {{ print $1 }}' | say volume
"""
_KEYS = (
    "ETCDCTL_API=3 etcdctl --endpoints $(sed -n 's/^ETCD_LISTEN_CLIENT_URLS=//p' /etc/hactl/etcd.conf)"
    " --cacert /etc/hactl/tls/ca.crt --cert /etc/hactl/tls/node.crt --key /etc/hactl/tls/node.key"
    " get --prefix --keys-only {}"
)
FOLDER = "folder "
"""Before the folder of a pool of files, in what is wanted."""
_MAY = ("journal ", "lasting ")
"""Files that are written when there is something to write down: none is missed, each may be left over."""


def dump(machine: Machine) -> dict[str, Any]:
    """The cluster's configuration as a node reads it from the store."""
    document: dict[str, Any] = json.loads(machine.succeed("hactl dump --json"))
    return document


def resource_names(machine: Machine) -> set[str]:
    """The resources that the store has."""
    return {r["name"] for r in dump(machine)["cluster"].get("resources", ())}


def wanted(cluster: dict[str, Any], node: str) -> set[str]:
    """What shall be on a node, in the words of :func:`found`."""
    return set(_wanted(cluster, node))


def _wanted(cluster: dict[str, Any], node: str) -> Iterator[str]:
    nodes = {n["name"]: n for n in cluster["nodes"]}
    initiators = {h["name"]: h["initiators"] for h in cluster.get("hosts", ())}
    pools = {p["name"]: p for p in nodes[node].get("pools", ())}
    for pool in pools.values():
        if "files" in pool:
            yield f"{FOLDER}{pool['files']['path']}"
    for r in cluster.get("resources", ()):
        if node not in r["nodes"]:
            continue
        name, iqn = r["name"], r["iqn"]
        yield from (f"target {iqn}", f"ledger {iqn}", f"journal {name}.json", f"lasting {name}.json")
        for address in nodes[node]["addresses"]["storage"]:
            host = f"[{address}]" if ":" in address else address
            yield f"portal {iqn}/tpgt_{nodes[node]['id']}/np/{host}:3260"
        luns = {str(v["number"]): v["lun"] for v in r["volumes"]}
        seen = {host: set(luns.values()) for host in r.get("hosts", ())}
        seen |= {host: set(by.values()) for host, by in r.get("exports", {}).items()}
        tags = [nodes[n]["id"] for n in r["nodes"]]
        for tag in tags:
            yield from (f"lun {iqn}/tpgt_{tag}/lun/lun_{lun}" for lun in luns.values())
            if len(tags) > 1:
                # For reservations the agent looks at its own port, and replays at those of others.
                yield f"acl {iqn}/tpgt_{tag}/acls/{CONTROL}"
                yield from (f"mapped {iqn}/tpgt_{tag}/acls/{CONTROL}/lun_{lun}" for lun in luns.values())
                if tag != nodes[node]["id"]:
                    yield f"portal {iqn}/tpgt_{tag}/np/127.77.{tag >> 8}.{tag & 255}:7790"
            for host, numbers in seen.items():
                for initiator in initiators[host]:
                    yield f"acl {iqn}/tpgt_{tag}/acls/{initiator}"
                    yield from (f"mapped {iqn}/tpgt_{tag}/acls/{initiator}/lun_{n}" for n in numbers)
        for v in r["volumes"]:
            gate = f"hactl.{name}.{v['number']}"
            yield from (f"gate {gate}", f"gate {gate}.hold", f"backstore {gate}")
            if node not in v.get("disks", {}):
                continue
            minor = v.get("minor", r["id"] * 16 + v["number"])
            yield from (f"drbd name:{name}", f"file hactl-{name}.res")
            yield f"drbd name:{name} volume:{v['number']} minor:{minor}"
            yield from _disk(pools, v["disks"][node], name, v["number"])


def _disk(pools: dict[str, Any], disk: str, name: str, number: int) -> Iterator[str]:
    if not disk.startswith("pool:"):
        return
    pool = pools[disk.removeprefix("pool:")]
    if "files" in pool:
        path = f"{pool['files']['path']}/hactl.{name}.{number}.img"
        yield from (f"image {path}", f"loop {path}", f"link {name}.{number}")
    else:
        yield f"volume {(pool.get('lvm') or pool['lvm_thin'])['vg']}/hactl.{name}.{number}"


def found(machine: Machine, folders: set[str]) -> set[str]:
    """What is on a node. ``folders``: of pools of files, in which there is nothing else."""
    images = "".join(f"find {f} -mindepth 1 -name '*hactl*' | say image\n" for f in sorted(folders))
    # A section of which there is nothing says so on standard error.
    return set(machine.execute(f"set +o pipefail; {_LOOK}{images}true").out.splitlines())


def differences(lab: Lab) -> list[str]:
    """What is left over on a node, and what is missing."""
    return _differences(lab, dump(lab.nodes[0]))


def _differences(lab: Lab, told: dict[str, Any]) -> list[str]:
    cluster = told["cluster"]
    members = [n["name"] for n in cluster["nodes"]]
    shall = {m.name: wanted(cluster, m.name) if m.name in members else set() for m in lab.nodes}
    folders = {x.removeprefix(FOLDER) for lines in shall.values() for x in lines if x.startswith(FOLDER)}
    machines = [m for m in lab.nodes if m.state == "up"]
    prefix = f"/hactl/{cluster['name']}/observed/"
    *seen, keys = in_parallel(
        *(lambda m=m: found(m, folders) for m in machines),
        lambda: lab[members[0]].succeed(_KEYS.format(prefix)).split(),
    )
    result = [f"{x['node']}: still to be removed: {x['resource']}/{x['volume']}" for x in told["leftovers"]]
    for machine, lines in zip(machines, seen, strict=True):
        want = {line for line in shall[machine.name] if not line.startswith(FOLDER)}
        result += [f"{machine.name}: left over: {line}" for line in sorted(lines - want)]
        result += [f"{machine.name}: missing: {x}" for x in sorted(want - lines) if not x.startswith(_MAY)]
    observed = {f"observed {key.removeprefix(prefix)}" for key in keys}
    want = {f"observed {n}/{r['name']}" for r in cluster.get("resources", ()) for n in r["nodes"]}
    result += [f"store: left over: {key}" for key in sorted(observed - want)]
    result += [f"store: missing: {key}" for key in sorted(want - observed)]
    return result


def wait_until_right(lab: Lab, timeout: float = 120, strangers: Collection[str] = ()) -> None:
    """Wait until every node is as the store says, every replica is UpToDate, nothing is to be done or told,
    and every agent goes by the newest configuration. ``strangers``: targets that are not hactl's."""
    end = time.monotonic() + timeout
    while True:
        problems = [p for p in look(lab) if not any(stranger in p for stranger in strangers)]
        if not problems:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout:g} s still: {'; '.join(problems)}")
        time.sleep(0.2)


def wait_until_whole(lab: Lab) -> None:
    """The same, and the store has a member on every machine and nothing to complain of."""
    wait_until_right(lab)
    told = json.loads(lab.nodes[0].succeed("hactl cluster status --json"))
    assert told["problems"] == []
    assert len(told["store"]["members"]) == len(lab.nodes)


def look(lab: Lab) -> list[str]:
    """What :func:`wait_until_right` waits for; each machine of the lab is asked, in the cluster or not."""
    asked = [m for m in lab.nodes if m.execute("test -e /etc/hactl/node.yaml").status == 0]
    told, *answers = in_parallel(
        lambda: dump(asked[0]), *(lambda m=m: m.execute("hactl status --json --here") for m in asked)
    )
    silent = [f"{m.name}: {a.err.strip()}" for m, a in zip(asked, answers, strict=True) if a.status != 0]
    if silent:
        return silent
    return _untidy([json.loads(a.out) for a in answers], told["generation"]) or _differences(lab, told)


def _untidy(told: list[dict[str, Any]], generation: int) -> list[str]:
    result = []
    for status in told:
        who = status["node"]
        if status["generation"] != generation or status["reason"]:
            result.append(f"{who}: generation {status['generation']} of {generation}: {status['reason']}")
        result += [f"{who}: takes down {x['name']}: {x['reason']}" for x in status["leaving"]]
        result += [f"{who}: does not reach {x['node']}" for x in status["peers"] if not x["reachable"]]
        for r in status["resources"]:
            disks = [v["disk"] for v in r["volumes"] if v["disk"] not in ("UpToDate", None)]
            if disks or r["pending"] or r["reason"]:
                result.append(f"{who}: {r['name']}: {disks} {r['reason']} {r['pending']}")
    return result
