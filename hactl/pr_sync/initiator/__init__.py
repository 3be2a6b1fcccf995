"""An iSCSI initiator just large enough to speak to LIO as somebody else's I_T nexus (RFC 7143)."""
