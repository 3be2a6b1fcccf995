"""Chooses where etcd's members run in tests."""

from __future__ import annotations

import os

# docker-py has no annotations.
from docker.errors import DockerException  # type: ignore[import-untyped]

from lab.errors import BuildError
from tests.contract.docker_host import DockerHost
from tests.contract.etcd_servers import Host, ProcessHost


def etcd_host() -> Host:
    """Containers where a Docker engine can run, else processes.

    HACTL_TEST_ETCD in the environment (``docker`` or ``process``) asks for one of them and no other.
    """
    wanted = os.environ.get("HACTL_TEST_ETCD", "")
    if wanted not in ("", "docker", "process"):
        raise ValueError(f"HACTL_TEST_ETCD: neither docker nor process: {wanted}")
    if wanted == "process":
        return ProcessHost()
    try:
        return DockerHost()
    except (OSError, RuntimeError, BuildError, DockerException) as error:
        if wanted == "docker":
            raise
        print(f"no Docker engine can run here, so etcd's members are processes: {error}")
        return ProcessHost()
