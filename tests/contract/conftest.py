"""The adapters that contract tests run on: always the twins, and with HACTL_REAL=1 the real ones too.

HACTL_REAL=1 is for a lab node with LIO's modules loaded and nothing to lose: objects are made and removed
under the names below only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hactl.errors import Failed
from hactl.target.configfs import ConfigFs, RealConfigFs
from hactl.target.memory import MemoryConfigFs
from hactl.target.tree import DEFAULT_GROUP, HBA_BASE, HBA_END

if TYPE_CHECKING:
    from tests.contract.etcd_cluster import EtcdCluster

REAL = os.environ.get("HACTL_REAL") == "1"

# What meets no kernel need not run on a lab node, where there is no room for three more servers either.
collect_ignore = ["test_store.py", "test_store_etcd.py"] if REAL else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the real kernel where there is none; the lab runs all of it on a node."""
    left_out = [item for item in items if not REAL and item.get_closest_marker("real")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


IQN = "iqn.2026-11.org.example.contract:"


@pytest.fixture(params=["memory", *(["real"] if REAL else [])])
def configfs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ConfigFs]:
    """LIO's tree, without any object of the tests' before and after."""
    fs: ConfigFs
    if request.param == "memory":
        fs = MemoryConfigFs(lambda path: path != "/dev/none")
    else:
        fs = RealConfigFs(ledger=tmp_path / "ledger")
        if not fs.exists("iscsi"):
            fs.mkdir("iscsi")
    wipe(fs)
    try:
        yield fs
    finally:
        wipe(fs)


@pytest.fixture(scope="session")
def etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One etcd of three members for all tests; each test heals what it finds hurt."""
    # Not at the top: a lab node has what its own tests need, and these are not among them.
    from tests.contract.etcd_cluster import EtcdCluster
    from tests.contract.etcd_host import etcd_host

    host = etcd_host()
    try:
        cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"), host)
        yield cluster
    finally:
        host.close()


@pytest.fixture
def real_configfs(tmp_path: Path) -> Iterator[RealConfigFs]:
    """The kernel's tree; only for tests marked real."""
    fs = RealConfigFs(ledger=tmp_path / "ledger")
    wipe(fs)
    try:
        yield fs
    finally:
        wipe(fs)


def wipe(fs: ConfigFs) -> None:
    """Remove all objects of the tests', in whatever state they were left."""
    for iqn in (n for n in fs.listdir("iscsi") if n.startswith(IQN)):
        for tpg in (f"iscsi/{iqn}/{n}" for n in fs.listdir(f"iscsi/{iqn}") if n.startswith("tpgt_")):
            _wipe_tpg(fs, tpg)
        fs.rmdir(f"iscsi/{iqn}")
        fs.release(iqn)
    for hba in fs.listdir("core"):
        number = hba.rpartition("_")[2]
        if not number.isdigit() or not HBA_BASE <= int(number) < HBA_END:
            continue
        for name in fs.listdir(f"core/{hba}"):
            if name in ("hba_info", "hba_mode"):
                continue
            for group in fs.listdir(f"core/{hba}/{name}/alua"):
                if group != DEFAULT_GROUP:
                    fs.rmdir(f"core/{hba}/{name}/alua/{group}")
            fs.rmdir(f"core/{hba}/{name}")
        fs.rmdir(f"core/{hba}")


def _wipe_tpg(fs: ConfigFs, tpg: str) -> None:
    # A portal group that is disabled already may refuse; whether it was disabled shows in what follows.
    with contextlib.suppress(Failed):
        fs.write(f"{tpg}/enable", "0")
    for acl in (f"{tpg}/acls/{n}" for n in fs.listdir(f"{tpg}/acls")):
        _wipe_luns(fs, acl)
        fs.rmdir(acl)
    _wipe_luns(fs, f"{tpg}/lun")
    for portal in fs.listdir(f"{tpg}/np"):
        fs.rmdir(f"{tpg}/np/{portal}")
    fs.rmdir(tpg)


def _wipe_luns(fs: ConfigFs, path: str) -> None:
    for lun in (f"{path}/{n}" for n in fs.listdir(path) if n.startswith("lun_")):
        for link in fs.links(lun):
            fs.unlink(f"{lun}/{link}")
        fs.rmdir(lun)
