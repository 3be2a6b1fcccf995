"""The cluster's own certificate authority, and the nodes' certificates.

One key pair per node, for agents, for clients of etcd and for etcd's members; the subject alternative names
are the node's name and its cluster address. ECDSA on P-256, which every TLS library at hand does quickly;
extensions as RFC 5280 wants them, since Python 3.13 and later check them strictly.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hactl.cluster.layout import Layout, write
from hactl.errors import Refused
from hactl.model.spec import IpAddress

AUTHORITY_LIFE = timedelta(days=20 * 365)
"""As long as any cluster: its end is the end of all certificates in it."""
NODE_LIFE = timedelta(days=365)
SLACK = timedelta(hours=1)
"""Certificates are valid from this long ago, as nodes' clocks differ a little."""

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Authority:
    """What admits nodes."""

    certificate: x509.Certificate
    key: Key = field(repr=False)

    def issue(self, public: ec.EllipticCurvePublicKey, node: str, address: IpAddress, now: datetime) -> bytes:
        """A node's certificate (PEM), valid from ``now`` on for servers and clients."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(node))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SLACK)
            .not_valid_after(min(now + NODE_LIFE, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(node), x509.IPAddress(address)]), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_authority(cluster: str, now: datetime, key: Key | None = None) -> Authority:
    """An authority for a new cluster."""
    key = key or new_key()
    name = _subject(f"hactl cluster {cluster}")
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def new_key() -> Key:
    """A private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as it goes into a file that only root can read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate (PEM), in hex: who holds that key."""
    return public_fingerprint(_public(_certificate(certificate)))


def public_fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key, in hex."""
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def request(key: Key, node: str) -> bytes:
    """A certificate signing request (PEM), which proves that the sender has the key."""
    built = x509.CertificateSigningRequestBuilder().subject_name(_subject(node)).sign(key, hashes.SHA256())
    return built.public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request. Nothing else in it is believed. :class:`ValueError` if it is not one."""
    try:
        found = x509.load_pem_x509_csr(pem)
        public = found.public_key()
        proven = found.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise ValueError(f"not a certificate signing request: {error}") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("the key is not one on the curve P-256")
    if not proven:
        raise ValueError("the request is not signed with its own key")
    return public


def renewal_due(certificate: bytes, now: datetime) -> bool:
    """Whether a third of a certificate's life, or less, is left."""
    found = _certificate(certificate)
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - now <= life / 3


def valid_until(certificate: bytes) -> datetime:
    """When a certificate (PEM) ends, UTC."""
    return _certificate(certificate).not_valid_after_utc


def load_authority(layout: Layout) -> Authority:
    """The authority from this node's files; :class:`Refused` ``no-authority`` if the key is not here."""
    try:
        certificate = _certificate((layout.tls / "ca.crt").read_bytes())
        key = load_key(layout.authority_key)
    except FileNotFoundError as error:
        raise Refused(
            "no-authority",
            f"this node cannot admit others: {error.filename} is missing",
            "use a node that has it, or copy it from one, for root only",
        ) from None
    if public_fingerprint(_public(certificate)) != public_fingerprint(key.public_key()):
        raise Refused(
            "no-authority",
            f"{layout.tls / 'ca.crt'} and {layout.authority_key} do not belong together",
            "copy both from another node, the key for root only",
        )
    return Authority(certificate, key)


def ensure_authority(layout: Layout, cluster: str, now: datetime) -> Authority:
    """The authority from this node's files, made if there is none. Key first: a certificate without its key
    could not be completed by a second try."""
    if not layout.authority_key.exists():
        write(layout.authority_key, key_pem(new_key()))
    if not (layout.tls / "ca.crt").exists():
        made = new_authority(cluster, now, load_key(layout.authority_key))
        write(layout.tls / "ca.crt", made.certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return load_authority(layout)


def ensure_key(layout: Layout) -> Key:
    """This node's key from its file, made if there is none."""
    if not layout.certificates.key.exists():
        write(layout.certificates.key, key_pem(new_key()))
    return load_key(layout.certificates.key)


def ensure_certificate(
    layout: Layout, authority: Authority, node: str, address: IpAddress, now: datetime
) -> bool:
    """See that this node has a certificate of that authority, name and address with more than a third of its
    life left; whether a new one was written. The key stays, so that one rename changes all there is to
    change: a key and a certificate that do not match would cut the node off.
    """
    key = ensure_key(layout)
    path = layout.certificates.certificate
    if path.exists() and not _stale(path.read_bytes(), authority, key, node, address, now):
        return False
    write(path, authority.issue(key.public_key(), node, address, now), 0o644)
    return True


def renew(layout: Layout, now: datetime, contexts: tuple[ssl.SSLContext, ...] = ()) -> bool:
    """Renew this node's certificate if a third of its life is left or less; whether that was done.

    ``contexts`` are those that use it: they show the new one in handshakes from then on. etcd reads its files
    at each handshake. :class:`Refused` ``no-authority`` if it is due and the authority's key is not here.
    """
    path = layout.certificates.certificate
    try:
        old = path.read_bytes()
    except FileNotFoundError:
        raise Refused("tls", f"there is no certificate {path}", "is this machine in a cluster?") from None
    if not renewal_due(old, now):
        return False
    node, address = names(old)
    ensure_certificate(layout, load_authority(layout), node, address, now)
    for context in contexts:
        context.load_cert_chain(path, layout.certificates.key)
    return True


def names(certificate: bytes) -> tuple[str, IpAddress]:
    """Node and cluster address that a node's certificate (PEM) is for."""
    try:
        found = _certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        (node,) = found.value.get_values_for_type(x509.DNSName)
        (address,) = found.value.get_values_for_type(x509.IPAddress)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise Refused("tls", f"not a certificate that hactl made: {error}") from None
    if not isinstance(address, IPv4Address | IPv6Address):
        raise Refused("tls", f"the certificate is for the network {address}, not for an address")
    return node, ip_address(str(address))


def signed_by(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate carries the signature of an authority (both PEM)."""
    try:
        _certificate(certificate).verify_directly_issued_by(_certificate(authority))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def load_key(path: Path) -> Key:
    """A private key from its file. :class:`FileNotFoundError`; :class:`Refused` ``tls`` if it is not one."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        # Not the library's words: they may quote what is in the file.
        raise Refused("tls", f"{path} is not a private key that hactl made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refused("tls", f"{path} is not a private key that hactl made")
    return key


def _stale(
    certificate: bytes, authority: Authority, key: Key, node: str, address: IpAddress, now: datetime
) -> bool:
    own = authority.certificate.public_bytes(serialization.Encoding.PEM)
    return (
        not signed_by(certificate, own)
        or fingerprint(certificate) != public_fingerprint(key.public_key())
        or names(certificate) != (node, address)
        or renewal_due(certificate, now)
    )


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise Refused("tls", f"not a certificate: {error}") from None


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise Refused("tls", "not a certificate that hactl made: its key is not on an elliptic curve")
    return public


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, sign: bool = False, authority: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def utc_now() -> datetime:
    """The time that certificates and invitations are judged by."""
    return datetime.now(UTC)
