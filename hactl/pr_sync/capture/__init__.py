"""The process that makes the kernel wait before it answers PERSISTENT RESERVE OUT.

With ``force_pr_aptpl=1`` LIO rewrites ``<dbroot>/pr/aptpl_<unit serial>`` before it answers a PERSISTENT
RESERVE OUT that succeeded. This process is the file system on that directory. A write to the file of one of
hactl's units waits until the agent lets it go; all other files are those of the directory below.

``wire`` is the FUSE protocol, ``units`` the list of hactl's serials, ``below`` the real directory,
``filesystem`` what is answered to which request. ``serve`` is the loop, ``mounting`` and ``systemd`` are the
outside, ``keeper`` stands in for systemd. ``lines`` is the protocol with the agent, ``protocol`` and
``client`` the agent's side of it, ``memory`` a twin of all for its tests.

What the server imports it imports on every restart while a command of an initiator waits: no asyncio, no
dataclasses, nothing from outside the standard library.
"""
