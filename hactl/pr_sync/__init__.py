"""Persistent reservations that are the same on every path (SPC-4 clause 5.13).

``state``, ``model`` and ``derive`` say what a unit's PR state is and what commands do to it; pure.
``aptpl`` and ``parameters`` are the two forms in which the kernel shows it. ``capture`` makes the kernel
wait before it answers PERSISTENT RESERVE OUT; ``initiator`` sends the same command where the other nodes
need it.
"""
