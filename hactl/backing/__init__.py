"""Backing storage: the disks under DRBD that hactl creates, grows and removes in a node's pools."""
