"""Which unit serials are hactl's, kept on disk for the time in which no agent is there to say so.

The list is in /run: LIO forgets its configuration when the machine stops, and so may the list. Each serial
has a number that is never given to another one, since the kernel goes on using numbers through a restart.
"""

from __future__ import annotations

import json
import os

PREFIX = "aptpl_"
"""What LIO puts before the serial to name the file (drivers/target/target_core_pr.c)."""

_VERSION = 1
_RANDOM = 1 << 28


class Units:
    """``numbers``: the number of each serial ever listed. ``known``: False where the list could not be read;
    then every file with LIO's prefix counts as hactl's until the agent has said which are."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.numbers: dict[str, int] = {}
        self.listed: frozenset[str] = frozenset()
        self.known = True
        self.problem = ""
        self._names: dict[int, str] = {}
        try:
            self._load()
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.known = False
            self.numbers, self.listed = {}, frozenset()
            self.problem = f"the list of units in {path} cannot be read: {error!r}"

    def _load(self) -> None:
        with open(self._path, encoding="utf-8") as file:  # noqa: PTH123  pathlib costs start-up time
            found = json.load(file)
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']!r} is not {_VERSION}")
        numbers = {str(serial): int(number) for serial, number in found["numbers"].items()}
        listed = frozenset(str(serial) for serial in found["listed"])
        if not listed <= numbers.keys() or len(set(numbers.values())) != len(numbers):
            raise ValueError("it contradicts itself")
        self.numbers, self.listed = numbers, listed
        self._names = {number: serial for serial, number in numbers.items()}

    def holds(self, name: str) -> bool:
        """Whether a write to the file of this name waits for the agent."""
        if not name.startswith(PREFIX):
            return False
        return not self.known or name[len(PREFIX) :] in self.listed

    def number(self, name: str) -> int:
        """The number of a file that ``holds`` says True about."""
        serial = name[len(PREFIX) :]
        if serial not in self.numbers:
            # Only where the list is not known. The number is not written down, so a successor that does not
            # know the list either must not come to the same one for another serial.
            self._add(serial, random=True)
        return self.numbers[serial]

    def serial(self, number: int) -> str | None:
        """The serial with this number, also when it is not listed any more."""
        return self._names.get(number)

    def _add(self, serial: str, *, random: bool = False) -> None:
        number = max(self._names, default=0) + 1
        if random:
            number = _RANDOM + int.from_bytes(os.urandom(4), "little") % _RANDOM
        self.numbers[serial] = number
        self._names[number] = serial

    def replace(self, serials: frozenset[str]) -> None:
        """From now on these are hactl's. OSError: it could not be written down, and the old list stays."""
        before, known = dict(self.numbers), self.known
        for serial in sorted(serials):
            if serial not in self.numbers:
                self._add(serial)
        if known and serials == self.listed:
            return
        try:
            self._save(serials)
        except OSError:
            self.numbers = before
            self._names = {number: serial for serial, number in before.items()}
            raise
        self.listed, self.known, self.problem = serials, True, ""

    def _save(self, serials: frozenset[str]) -> None:
        text = json.dumps({"version": _VERSION, "listed": sorted(serials), "numbers": self.numbers})
        own = self._path + ".new"
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(own, self._path)  # noqa: PTH105  pathlib costs start-up time
