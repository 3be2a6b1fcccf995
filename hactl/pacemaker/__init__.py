"""Pacemaker: what its configuration shall be, what it says of the cluster, and orders to it."""
