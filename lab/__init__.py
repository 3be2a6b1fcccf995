"""The lab: a cluster of real machines on one host."""
