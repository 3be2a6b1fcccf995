"""hactl: a high-availability cluster storage controller for LIO, DRBD and Pacemaker."""

__version__ = "0.1.0"
