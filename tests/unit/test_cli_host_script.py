"""The script that attaches a host, run by a real shell against programs that record what they are asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hactl import multipath
from hactl.cli.host_script import paths, script
from hactl.model.load import parse
from hactl.model.spec import ClusterSpec
from tests.unit.cli_world import IQN, OTHER_SECRET, SECRET

TEXT = f"""\
name: lab
nodes:
  - name: n1
    id: 1
    addresses: {{cluster: 10.0.1.1, replication: 10.0.2.1, storage: [10.0.3.1]}}
  - name: n2
    id: 2
    addresses: {{cluster: 10.0.1.2, replication: 10.0.2.2, storage: [10.0.3.2, "fd00::2"]}}
  - name: n3
    id: 3
    addresses: {{cluster: 10.0.1.3, replication: 10.0.2.3, storage: [10.0.3.3]}}
hosts:
  - name: c1
    initiators: [{IQN}]
  - name: c2
    initiators: [iqn.1993-08.org.debian:01:c2]
    chap: {{user: u1, password: {SECRET}, mutual_user: t1, mutual_password: {OTHER_SECRET}}}
  - name: c3
    initiators: [iqn.1993-08.org.debian:01:c3]
resources:
  - name: r0
    id: 1
    iqn: iqn.2026-01.com.example:r0
    nodes: [n1, n2]
    hosts: [c1]
    exports: {{c2: {{0: 3}}}}
    volumes: [{{number: 0, lun: 0, size: 10G, disks: {{n1: /dev/sdb, n2: /dev/sdb}}}}]
"""
R0 = "iqn.2026-01.com.example:r0"

ISCSIADM = """\
#!/bin/sh
# An iscsiadm with records, sessions, and portals that may be silent.
echo "$*" >>"$FAKE/asked"
if [ ! -t 0 ] && read -r line; then echo "input: $line" >>"$FAKE/asked"; fi
case "$*" in
    *discovery*) case "$*" in *"$SILENT"*) exit 4 ;; esac; exit 0 ;;
esac
while [ $# -gt 0 ]; do
    case $1 in
        -T) target=$2 ;;
        -p) portal=$2 ;;
        --login) action=login ;;
        --rescan) action=rescan ;;
        -o) action=$2 ;;
        -n) name=$2 ;;
        -v) value=$2 ;;
    esac
    shift
done
plain=${portal%%,*}
address=${plain%:*}; address=${address#[}; address=${address%]}
record=$FAKE/etc/iscsi/nodes/$target/$address,3260,1/default
session=$FAKE/sessions/$target@$plain
case ${action-show} in
    show) [ -f "$record" ] || exit 21 ;;
    new)
        mkdir -p "${record%/*}"
        printf '# BEGIN\\nnode.session.auth.authmethod = None\\n# END\\n' >"$record" ;;
    update) [ -f "$record" ] && echo "$name = $value" >>"$record" ;;
    login)
        case $plain in *"$SILENT"*) exit 8 ;; esac
        [ ! -f "$session" ] || exit 15
        mkdir -p "$FAKE/sessions"; : >"$session" ;;
    rescan) [ -f "$session" ] ;;
esac
"""


@pytest.fixture
def cluster() -> ClusterSpec:
    return parse(TEXT)


class Machine:
    """Runs scripts with a folder as its /etc, as root to the script's eye."""

    def __init__(self, folder: Path, initiator: str) -> None:
        self.folder = folder
        self.silent = "nothing is silent"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {
            "iscsiadm": ISCSIADM,
            "id": "#!/bin/sh\necho 0\n",
            "multipath": "#!/bin/sh\n:\n",
            "systemctl": '#!/bin/sh\necho "$*" >>"$FAKE/systemctl"\n',
        }.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (folder / "etc/iscsi").mkdir(parents=True)
        (folder / "etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={initiator}\n")

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """As ``ssh HOST sh`` runs it: from standard input."""
        here = text.replace("/etc/", f"{self.folder}/etc/").replace("/var/lib/", f"{self.folder}/var/")
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "SILENT": self.silent,
        }
        return subprocess.run(
            ["sh"], input=here, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def sessions(self) -> set[str]:
        return {path.name for path in (self.folder / "sessions").glob("*")}


ALL = {f"{R0}@10.0.3.1:3260", f"{R0}@10.0.3.2:3260", f"{R0}@[fd00::2]:3260"}


def test_ways_to_a_host(cluster: ClusterSpec) -> None:
    found = [(p.node, p.portal, p.tag) for p in paths(cluster, "c1")]
    assert found == [("n1", "10.0.3.1:3260", 1), ("n2", "10.0.3.2:3260", 2), ("n2", "[fd00::2]:3260", 2)]
    assert {p.portal for p in paths(cluster, "c2")} == {portal for _, portal, _ in found}
    assert paths(cluster, "c3") == ()


def test_it_attaches_everything_and_may_run_again(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, IQN)
    text = script(cluster, cluster.host("c1"))
    first = machine.run(text)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert machine.sessions == ALL
    written = machine.read("etc/multipath/conf.d/hactl.conf")
    assert written.replace(str(tmp_path), "") == multipath.render()
    assert "find_multipaths yes" in machine.read("etc/multipath.conf")
    record = machine.read(f"etc/iscsi/nodes/{R0}/10.0.3.2,3260,1/default")
    assert "node.startup = automatic" in record
    assert machine.read("systemctl").count("restart multipathd") == 1
    second = machine.run(text)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("was attached") == 3
    assert machine.sessions == ALL
    assert machine.read("systemctl").count("restart multipathd") == 1
    assert "input:" not in machine.read("asked"), "a program read a part of the script"


def test_a_silent_node_is_told_and_attached_later(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, IQN)
    machine.silent = "10.0.3.1"
    text = script(cluster, cluster.host("c1"))
    result = machine.run(text)
    assert result.returncode == 1
    assert "portal 10.0.3.1:3260 does not answer" in result.stderr
    assert machine.sessions == ALL - {f"{R0}@10.0.3.1:3260"}
    machine.silent = "nothing is silent"
    assert machine.run(text).returncode == 0
    assert machine.sessions == ALL


def test_passwords_go_into_records_and_never_into_arguments(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "iqn.1993-08.org.debian:01:c2")
    text = script(cluster, cluster.host("c2"))
    for _ in range(2):
        result = machine.run(text)
        assert result.returncode == 0, result.stderr
        assert SECRET not in result.stderr + machine.read("asked")
        assert OTHER_SECRET not in result.stderr + machine.read("asked")
        for address in ("10.0.3.1", "10.0.3.2", "fd00::2"):
            file = tmp_path / f"etc/iscsi/nodes/{R0}/{address},3260,1/default"
            record = file.read_text().splitlines()
            assert [line for line in record if ".auth." in line] == [
                "node.session.auth.authmethod = CHAP",
                "node.session.auth.username = u1",
                f"node.session.auth.password = {SECRET}",
                "node.session.auth.username_in = t1",
                f"node.session.auth.password_in = {OTHER_SECRET}",
            ]
            assert file.stat().st_mode & 0o077 == 0
    assert SECRET not in script(cluster, cluster.host("c1"))


def test_another_machine_is_left_alone(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "iqn.1993-08.org.debian:01:other")
    result = machine.run(script(cluster, cluster.host("c1")))
    assert result.returncode == 1
    assert "which is not an initiator of host c1" in result.stderr
    assert not (tmp_path / "etc/multipath").exists()
    assert not (tmp_path / "asked").exists()


def test_half_a_script_does_nothing(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, IQN)
    lines = script(cluster, cluster.host("c1")).splitlines(keepends=True)
    for end in range(0, len(lines), 7):
        machine.run("".join(lines[:end]))
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "etc/multipath").exists()


def test_nothing_is_exported(cluster: ClusterSpec, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "iqn.1993-08.org.debian:01:c3")
    result = machine.run(script(cluster, cluster.host("c3")))
    assert "nothing is exported to c3" in result.stderr
    assert result.returncode == 0
