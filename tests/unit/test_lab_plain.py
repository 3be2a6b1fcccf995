"""What of the lab is decided without a machine: layout, networks, recipes, settings."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import recipe
from lab.errors import LabError
from lab.launch import Wanted, folder_of
from lab.layout import BMC, BMC_NETWORK, CLIENT_INDEX, NETWORKS, MachineSpec, machines
from lab.network import create_commands, cut_commands, heal_commands, partitions

BY_NAME = {m.name: m for m in machines(3)}


def test_every_address_mac_and_tap_is_unique() -> None:
    specs = machines(9)
    pairs = [(m, n) for m in specs for n in m.networks]
    for made in (
        [a for m, n in pairs for a in m.addresses(n)] + [m.bmc_address for m in specs],
        [m.mac(n) for m, n in pairs],
        [port for m in specs for port, _ in m.ports.values()],
    ):
        assert len(set(made)) == len(made) > 0


@given(st.integers(1, 9), st.sampled_from([*NETWORKS, BMC]))
def test_interface_names_fit_the_kernel(nodes: int, network: str) -> None:
    longest = 15  # IFNAMSIZ is 16 with the final zero
    for spec in machines(nodes):
        for port, _ in spec.ports.values():
            assert len(port) <= longest
    for line in cut_commands(BY_NAME, network, ["n1"], 99999):
        for word in line.split():
            assert len(word) <= longest or word.isdigit()


def test_a_client_is_on_the_storage_network_only_and_has_no_disk_for_replicas() -> None:
    (client,) = (m for m in machines(1) if m.name == "c1")
    assert (client.index, client.networks, client.data_size) == (CLIENT_INDEX, ("storage",), 0)


def test_a_lab_may_do_without_a_client() -> None:
    assert [m.name for m in machines(2, client=False)] == ["n1", "n2"]


def test_the_command_line_tells_a_machine_its_name_addresses_and_neighbours() -> None:
    line = machines(1)[0].command_line(machines(1))
    assert line == (
        "lab.name=n1 lab.net=10.77.1.1/24,fd77:1::1/64;10.77.2.1/24,fd77:2::1/64;10.77.3.1/24,fd77:3::1/64"
        " lab.hosts=n1@10.77.1.1,c1@10.77.3.11"
    )


def run(batches: list[list[str]]) -> dict[str, str]:
    """Interface → bridge, after ``ip`` was given these commands; fails on what ip would refuse."""
    masters: dict[str, str] = {}
    for line in itertools.chain.from_iterable(batches):
        words = line.split()
        if words[:2] in (["link", "add"], ["tuntap", "add"]):
            assert words[2] not in masters, line
            masters[words[2]] = ""
        elif words[:2] == ["link", "del"]:
            del masters[words[2]]
            assert words[2] not in masters.values(), line
        elif words[:2] == ["link", "set"] and words[2] != "lo":
            assert words[2] in masters, line
            if "master" in words:
                bridge = words[words.index("master") + 1]
                assert bridge in masters, line
                masters[words[2]] = bridge
    return masters


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*NETWORKS, BMC]), st.sets(st.sampled_from(("n1", "n2", "n3")), min_size=1)
        ),
        max_size=6,
    )
)
def test_after_any_cuts_heal_makes_it_as_it_was(cuts: list[tuple[str, set[str]]]) -> None:
    cables = [f"link add {m.bmc_port} type veth" for m in BY_NAME.values()]
    homes = [f"link set {m.bmc_port} master {BMC_NETWORK} up" for m in BY_NAME.values()]
    begin = [create_commands(BY_NAME.values()), cables, homes]
    whole = run(begin)
    assert partitions(BY_NAME.values(), whole) == {}
    done = [cut_commands(BY_NAME, net, sorted(names), i) for i, (net, names) in enumerate(cuts, 1)]
    parted = run(begin + done)
    told = partitions(BY_NAME.values(), parted)
    assert set(told) == {BY_NAME[name].ports[net][0] for net, names in cuts for name in names}
    if cuts:
        net, names = cuts[-1]
        assert len({told[BY_NAME[name].ports[net][0]] for name in names}) == 1
    bridges = [name for name in parted if name not in whole] + list(NETWORKS)
    assert run([*begin, *done, heal_commands(BY_NAME.values(), bridges, parted)]) == whole


def test_heal_does_without_the_cable_of_a_bmc_that_ended() -> None:
    whole = run([create_commands(BY_NAME.values())])
    assert "n1-bmc" not in whole
    assert partitions(BY_NAME.values(), whole) == {m.bmc_port: "" for m in BY_NAME.values()}
    assert not any("bmc" in line for line in heal_commands(BY_NAME.values(), NETWORKS, whole))


@pytest.mark.parametrize(
    ("network", "names", "words"),
    [
        ("backup", ["n1"], "cluster, replication, storage, and bmc"),
        ("cluster", ["n1", "n7"], "n1, n2, n3, c1"),
        ("replication", ["c1"], "not on the replication network"),
        ("storage", [], "no machine was named"),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(network: str, names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cut_commands(BY_NAME, network, names, 1)


def test_a_recipe_digest_changes_with_everything_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = recipe.NODE
    seen = {node.digest("a"), node.digest("b"), recipe.CLIENT.digest()}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        other = not value if isinstance(value, bool) else value * 2
        changes: dict[str, Any] = {field.name: other}
        seen.add(dataclasses.replace(node, **changes).digest("a"))
    assert len(seen) == 3 + len(dataclasses.fields(node))
    base = node.base_digest("a")
    changed = tmp_path / "control.py"
    changed.write_text("something else\n")
    monkeypatch.setattr(recipe, "GUEST_FILES", {changed: "usr/local/lib/lab/control.py"})
    assert node.digest("a") not in seen
    assert node.base_digest("a") == base


def test_packages_and_services_are_named_once() -> None:
    for made in recipe.RECIPES.values():
        for words in (made.packages, made.masked, made.disabled, made.generators):
            assert len(set(words)) == len(words) > 0


def test_what_was_not_asked_for_is_no_difference() -> None:
    running = {"nodes": 2, "client": False, "wanted": "auto"}
    assert Wanted().differs(running) == []
    assert Wanted(nodes=2, client=False, kinds="auto").differs(running) == []
    assert Wanted(nodes=3).differs(running) == ["2 node(s), not 3"]
    assert Wanted(client=True).differs(running) == ["no client"]
    assert Wanted(kinds="qemu").differs(running) == ["machines auto, not qemu"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a" * 41, "a b"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(LabError):
        folder_of(name)


def test_a_machine_has_the_same_addresses_in_every_lab() -> None:
    assert MachineSpec("n2", 2, "node", NETWORKS).addresses("replication") == ("10.77.2.2/24", "fd77:2::2/64")
