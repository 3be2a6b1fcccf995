"""DRBD: configuration, events2, roles."""
