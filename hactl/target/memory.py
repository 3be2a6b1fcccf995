"""A twin of LIO's configfs tree in memory: same layout, same defaults, same refusals as far as hactl relies
on them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hactl.errors import Refused
from hactl.target.configfs import refusal
from hactl.target.memory_core import Core
from hactl.target.memory_iscsi import Fabric
from hactl.target.memory_items import Item, need, refuse


class _Root(Item):
    def make(self, name: str) -> Item:
        need(name == "iscsi", errno.ENOENT)
        return Fabric(self)


class MemoryConfigFs:
    """See :class:`hactl.target.configfs.ConfigFs`. ``opens`` says which devices and files exist; all by
    default.

    ``writes`` counts what has changed the tree or the ledger. ``before`` is called with a description before
    each such change, so that a test can stop there.
    """

    def __init__(self, opens: Callable[[str], bool] = lambda _: True, *, fabric: bool = True) -> None:
        self._root = _Root(None, "")
        self._root.add(Core(self._root, opens))
        self._claims: set[str] = set()
        self.writes = 0
        self.before: Callable[[str], None] = lambda _: None
        if fabric:
            self._root.children["iscsi"] = self._root.make("iscsi")

    def _find(self, path: str) -> Item:
        item: Item = self._root
        for part in path.split("/") if path else ():
            if part in item.children:
                item = item.children[part]
            else:
                refuse(errno.ENOTDIR if part in item.attributes() else errno.ENOENT)
        return item

    @contextmanager
    def _kernel(self, action: str, path: str, value: str | None = None) -> Iterator[tuple[Item, str]]:
        """The item that holds the last part of a path, and that part."""
        if action not in ("read", "list", "read link"):
            self.before(f"{action} {path}")
            self.writes += 1
        try:
            above, _, name = path.rpartition("/")
            yield self._find(above), name
        except OSError as error:
            raise refusal(action, path, error, value) from None

    def read(self, path: str) -> str:
        with self._kernel("read", path) as (item, name):
            return item.show(name).removesuffix("\n")

    def write(self, path: str, value: str) -> None:
        if not value:
            raise Refused("configfs-empty", f"an empty value cannot be written to {path}")
        with self._kernel("write", path, value) as (item, name):
            item.store(name, value)

    def mkdir(self, path: str) -> None:
        with self._kernel("make", path) as (item, name):
            need(not self._has(item, name), errno.EEXIST)
            item.children[name] = item.make(name)

    def rmdir(self, path: str) -> None:
        with self._kernel("remove", path) as (item, name):
            need(self._has(item, name), errno.ENOENT)
            need(name in item.children, errno.ENOTDIR)
            child = item.children[name]
            need(not child.default, errno.EPERM)
            child.check_removal()
            del item.children[name]
            child.removed()

    def symlink(self, source: str, link: str) -> None:
        with self._kernel(f"link {source} into", link) as (item, name):
            target = self._find(source)
            need(not self._has(item, name), errno.EEXIST)
            item.link(target)
            item.links[name] = target
            target.linked_by.append(item)

    def unlink(self, path: str) -> None:
        with self._kernel("unlink", path) as (item, name):
            need(self._has(item, name), errno.ENOENT)
            need(name in item.links, errno.EISDIR if name in item.children else errno.EPERM)
            target = item.links.pop(name)
            target.linked_by.remove(item)
            item.unlinked()

    def listdir(self, path: str) -> list[str]:
        with self._kernel("list", f"{path}/") as (item, _):
            return sorted([*item.attributes(), *item.children, *item.links])

    def exists(self, path: str) -> bool:
        above, _, name = path.rpartition("/")
        try:
            return self._has(self._find(above), name)
        except OSError:
            return False

    def readlink(self, path: str) -> str:
        with self._kernel("read link", path) as (item, name):
            need(self._has(item, name), errno.ENOENT)
            need(name in item.links)
            return item.links[name].path()

    def links(self, path: str) -> dict[str, str]:
        with self._kernel("list", f"{path}/") as (item, _):
            return {name: item.links[name].path() for name in sorted(item.links)}

    def claims(self) -> frozenset[str]:
        return frozenset(self._claims)

    def claim(self, iqn: str) -> None:
        self.before(f"claim {iqn}")
        self.writes += 1
        self._claims.add(iqn)

    def release(self, iqn: str) -> None:
        self.before(f"release {iqn}")
        self.writes += 1
        self._claims.discard(iqn)

    @staticmethod
    def _has(item: Item, name: str) -> bool:
        return name in item.children or name in item.links or name in item.attributes()
