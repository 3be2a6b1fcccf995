"""What the in-memory twin of LIO's tree is built from: items with attributes, children and links, as configfs
has them, and the number formats the kernel takes.

Refusals are :class:`OSError` with the kernel's errno; ``memory.MemoryConfigFs`` turns them into hactl's
errors.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import NoReturn


def refuse(number: int) -> NoReturn:
    """Refuse as the kernel does."""
    raise OSError(number, errno.errorcode[number])


def boolean(text: str) -> str:
    """``1`` or ``0`` of what kstrtobool takes."""
    first = text[:2].lower()
    if first[:1] in ("y", "1", "t") or first == "on":
        return "1"
    if first[:1] in ("n", "0", "f") or first == "of":
        return "0"
    refuse(errno.EINVAL)


def unsigned(text: str, limit: int = 0xFFFFFFFF) -> int:
    """A number as kstrtouint with base 0 reads it: 0x is hexadecimal, a leading 0 octal."""
    word = text.strip("\n")
    base = 16 if word[:2].lower() == "0x" else 8 if len(word) > 1 and word[0] == "0" else 10
    if not word.isalnum():
        refuse(errno.EINVAL)
    try:
        value = int(word, base)
    except ValueError:
        refuse(errno.EINVAL)
    if value > limit:
        refuse(errno.ERANGE)
    return value


class Item:
    """An object in the tree. ``default`` ones come and go with their parent."""

    def __init__(self, parent: Item | None, name: str, *, default: bool = True) -> None:
        self.parent = parent
        self.name = name
        self.default = default
        self.children: dict[str, Item] = {}
        self.links: dict[str, Item] = {}
        self.linked_by: list[Item] = []
        self.values: dict[str, str] = {}
        self.shows: dict[str, Callable[[], str]] = {}
        self.stores: dict[str, Callable[[str], None]] = {}

    def path(self) -> str:
        """Path from the root."""
        if self.parent is None:
            return ""
        above = self.parent.path()
        return f"{above}/{self.name}" if above else self.name

    def add(self, item: Item) -> Item:
        """Add a default child."""
        self.children[item.name] = item
        return item

    def plain(self, **values: str) -> None:
        """Attributes that take any number and give it back."""
        for name, value in values.items():
            self.values[name] = value
            self.stores[name] = self._putter(name, lambda text: str(unsigned(text)))

    def flags(self, **values: str) -> None:
        """Attributes that are 0 or 1."""
        for name, value in values.items():
            self.values[name] = value
            self.stores[name] = self._putter(name, boolean)

    def texts(self, **values: str) -> None:
        """Attributes that take any text."""
        for name, value in values.items():
            self.values[name] = value
            self.stores[name] = self._putter(name, lambda text: text.strip("\n"))

    def fixed(self, **values: str) -> None:
        """Attributes that can only be read."""
        self.values.update(values)

    def _putter(self, name: str, convert: Callable[[str], str]) -> Callable[[str], None]:
        def put(text: str) -> None:
            self.values[name] = convert(text)

        return put

    def attributes(self) -> Iterator[str]:
        """Names of all attributes."""
        yield from dict.fromkeys([*self.values, *self.shows, *self.stores])

    def show(self, name: str) -> str:
        """What reading an attribute gives."""
        if name in self.shows:
            return self.shows[name]()
        if name in self.values:
            return self.values[name] + "\n"
        refuse(
            errno.EACCES if name in self.stores else errno.EISDIR if name in self.children else errno.ENOENT
        )

    def store(self, name: str, value: str) -> None:
        """What writing an attribute does."""
        if name in self.stores:
            self.stores[name](value)
        elif name in self.values or name in self.shows:
            refuse(errno.EACCES)
        else:
            refuse(errno.EISDIR if name in self.children else errno.ENOENT)

    def make(self, name: str) -> Item:  # noqa: ARG002 - for those that override it
        """A new child for mkdir; most items take none."""
        refuse(errno.EPERM)

    def link(self, target: Item) -> None:  # noqa: ARG002 - for those that override it
        """Take a link to ``target``; most items take none."""
        refuse(errno.EPERM)

    def unlinked(self) -> None:
        """A link of the item was removed."""

    def removed(self) -> None:
        """The item was removed."""

    def check_removal(self) -> None:
        """Refuse what configfs refuses: what is linked to, and what has children or links of its own."""
        if self.linked_by:
            refuse(errno.EBUSY)
        if self.links:
            refuse(errno.ENOTEMPTY)
        for child in self.children.values():
            if not child.default:
                refuse(errno.ENOTEMPTY)
            child.check_removal()


def need(condition: bool, number: int = errno.EINVAL) -> None:
    """Refuse unless a condition holds."""
    if not condition:
        refuse(number)
