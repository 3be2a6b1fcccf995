"""This node's certificates. A module of its own, as every command needs to know where they are, and only the
agent needs what it serves with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from hactl.errors import Failed

TLS = Path("/etc/hactl/tls")


@dataclass(frozen=True)
class Certificates:
    """Files of this node: the cluster's CA, and a certificate whose subject alternative name is the node's
    name."""

    ca: Path = TLS / "ca.crt"
    certificate: Path = TLS / "node.crt"
    key: Path = TLS / "node.key"

    def server(self) -> ssl.SSLContext:
        """Demands a certificate of the cluster's CA from whoever connects."""
        return self._context(ssl.Purpose.CLIENT_AUTH)

    def client(self) -> ssl.SSLContext:
        """Checks the server's certificate against the node name that is asked for."""
        return self._context(ssl.Purpose.SERVER_AUTH)

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise Failed(
                "tls", f"cannot use the certificates in {self.ca.parent}: {error}", "issue them again"
            ) from error
        return context
