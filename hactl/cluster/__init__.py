"""From installed packages to a cluster: certificates, etcd's members, invitations, joining and leaving."""
