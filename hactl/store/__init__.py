"""The cluster's store: its protocol, etcd, and an in-memory twin."""
