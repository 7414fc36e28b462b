"""The certificate authority, the servers' and nodes' certificates, the nodes' keys."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from acme_fleet.errors import FleetError

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.crt", "server.key"
NODE_KEY, NODE_PUBLIC, PEERS = "node.key", "node.pub", "peers"
NODE, REVOKED = "node.crt", "revoked.crl"
_YEARS = 5
_STRANGE = "{}: {} does not belong to the {} beside it; copy what one `acme keys init` made"


def make_authority(folder: Path) -> bool:
    """Make the certificate authority, unless it is there; whether it was made."""
    if (folder / CA).exists():
        return False
    key = generate_private_key(SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "acme-fleet authority")])
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_private(folder / CA_KEY, key)
    _write_certificate(folder / CA, certificate)
    _write_revoked(folder, [])
    return True


def make_server(authority: Path, folder: Path, hosts: Sequence[str]) -> None:
    """Make a server's key and its certificate for names and addresses; it is also ``localhost``.

    Raises:
        FleetError: if there is no authority, or the server has a certificate already.
    """
    _refuse_existing(folder / SERVER_KEY)
    key = generate_private_key(SECP384R1())
    names = [_general_name(host) for host in dict.fromkeys((*hosts, "localhost", "127.0.0.1"))]
    certificate = _issue(
        authority, hosts[0], key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, names
    )
    _write_private(folder / SERVER_KEY, key)
    _write_certificate(folder / SERVER, certificate)


def make_node(folder: Path) -> None:
    """Make the key by which an edge or device is known to the server that it dials.

    Raises:
        FleetError: if there is one already.
    """
    _refuse_existing(folder / NODE_KEY)
    key = generate_private_key(SECP384R1())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write_secret(folder / NODE_KEY, text)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / NODE_PUBLIC).write_bytes(public + b"\n")


def make_client(authority: Path, folder: Path, name: str) -> None:
    """Make the certificate that a node shows its server, for the public key in a folder.

    It is of the node's own key: nothing secret leaves the node.

    Raises:
        FleetError: if there is no authority or public key, or there is a certificate already.
    """
    _refuse_existing(folder / NODE)
    path = folder / NODE_PUBLIC
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(
            f"{name}: no usable public key in {path}: {error}; copy there the {NODE_PUBLIC} that "
            f"`acme keys device {name}` made"
        ) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise FleetError(f"{name}: {path} is no key that `acme keys device {name}` made")
    certificate = _issue(authority, name, key, ExtendedKeyUsageOID.CLIENT_AUTH)
    _write_certificate(folder / NODE, certificate)


def revoke(authority: Path, folder: Path) -> None:
    """Add a node's certificate to the list of those that no server takes any more.

    Raises:
        FleetError: if there is no authority, or the certificate or the list is damaged.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / NODE).read_bytes())
        path = authority / REVOKED
        old = list(x509.load_pem_x509_crl(path.read_bytes())) if path.exists() else []
    except (OSError, ValueError) as error:
        raise FleetError(f"cannot use {folder / NODE} or {authority / REVOKED}: {error}") from error
    if certificate.serial_number not in {entry.serial_number for entry in old}:
        now = datetime.now(UTC)
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        _write_revoked(authority, [*old, entry.revocation_date(now).build()])


def make_loopback(folder: Path) -> None:
    """Make a key and a certificate for 127.0.0.1 that only this host's own processes trust."""
    key = generate_private_key(SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([_general_name("127.0.0.1")])
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA384())
    )
    (folder / SERVER_KEY).unlink(missing_ok=True)
    _write_private(folder / SERVER_KEY, key)
    _write_certificate(folder / SERVER, certificate)


def write_client_key(keys: Path, folder: Path) -> None:
    """Write a node's key into another folder, in the form that OpenSSL reads."""
    key = load_ssh_private_key((keys / NODE_KEY).read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    (folder / NODE_KEY).unlink(missing_ok=True)
    _write_private(folder / NODE_KEY, key)


def check_server(folder: Path, where: str) -> None:
    """Refuse a server's certificate that is not of the authority or the key beside it.

    Raises:
        FleetError: naming the files.
    """
    _check(folder, SERVER, SERVER_KEY, where, load_pem_private_key)


def check_client(folder: Path, where: str) -> None:
    """Refuse a node's certificate that is not of the authority or the key beside it.

    Raises:
        FleetError: naming the files.
    """
    _check(folder, NODE, NODE_KEY, where, load_ssh_private_key)


def check_revoked(folder: Path, where: str) -> None:
    """Refuse a list of revoked certificates that is not of the authority beside it, or too old.

    Raises:
        FleetError: naming the file.
    """
    path = folder / REVOKED
    try:
        authority = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(f"{where}: cannot use {path}: {error}") from error
    key = authority.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        raise FleetError(_STRANGE.format(where, path, CA))
    end = crl.next_update_utc
    if end is not None and end < datetime.now(UTC):
        raise FleetError(
            f"{where}: {path} was good until {end:%d %B %Y}; `acme keys revoke` writes a new one"
        )


def _check(
    folder: Path, name: str, key_name: str, where: str, load: Callable[[bytes, None], object]
) -> None:
    try:
        authority, certificate = (
            x509.load_pem_x509_certificate((folder / each).read_bytes()) for each in (CA, name)
        )
        key = load((folder / key_name).read_bytes(), None)
    except OSError as error:
        raise FleetError(
            f"{where}: cannot read {error.filename}: {error.strerror}; start the host as its owner"
        ) from error
    except (ValueError, TypeError) as error:
        text = f"{where}: a certificate or key in {folder} is damaged: {error}"
        raise FleetError(text) from error
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise FleetError(_STRANGE.format(where, folder / name, CA)) from error
    own = isinstance(key, EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
    if not own:
        raise FleetError(_STRANGE.format(where, folder / name, key_name))


def public_keys(folder: Path, members: Sequence[str]) -> Mapping[str, Path]:
    """The public keys of those who may dial this host; a revoked one has none.

    Raises:
        FleetError: naming those whose key is missing, or stands for two of them.
    """
    paths = {
        name: folder / PEERS / f"{name}.pub"
        for name in members
        if not shut_out(folder, name).exists()
    }
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        raise FleetError(
            f"no public key of {', '.join(missing[:5])} in {folder / PEERS}; `acme keys device "
            f"NAME` makes it on their host, copy its {NODE_PUBLIC} here as NAME.pub"
        )
    owners: dict[str, str] = {}
    for name, path in paths.items():
        key = path.read_text(errors="replace")
        if not key.startswith("ecdsa-sha2-"):
            raise FleetError(f"{path} is no public key; copy the {NODE_PUBLIC} of {name} there")
        other = owners.setdefault(" ".join(key.split()[:2]), name)
        if other != name:
            raise FleetError(f"{name} and {other} have the same public key in {folder / PEERS}")
    return paths


def shut_out(folder: Path, name: str) -> Path:
    """The place of the public key of a peer that a host lets in no more."""
    return folder / PEERS / f"{name}.revoked"


def require(folder: Path, names: Sequence[str], where: str) -> None:
    """Refuse to start without the files that a host needs.

    Raises:
        FleetError: naming what is missing, and what makes it.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        makers = [{NODE_KEY: "device", NODE: "certify"}.get(name, "init") for name in missing]
        commands = " and ".join(f"`acme keys {maker}`" for maker in dict.fromkeys(makers))
        raise FleetError(
            f"{where}: {folder} lacks {', '.join(missing)}; {commands} made or will make them, "
            f"and said what to copy here"
        )


def _issue(
    authority: Path,
    name: str,
    key: EllipticCurvePublicKey,
    purpose: x509.ObjectIdentifier,
    hosts: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    """A certificate of the authority for a key.

    Raises:
        FleetError: if there is no authority.
    """
    issuer, signer = _authority(authority)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, issuer.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return builder.sign(signer, hashes.SHA384())


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    try:
        issuer = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        signer = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except (OSError, ValueError) as error:
        raise FleetError(f"no usable certificate authority in {folder}: {error}") from error
    assert isinstance(signer, EllipticCurvePrivateKey)
    return issuer, signer


def _write_revoked(folder: Path, entries: Sequence[x509.RevokedCertificate]) -> None:
    issuer, signer = _authority(folder)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - timedelta(days=1))
        .next_update(now + timedelta(days=365 * _YEARS))
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    crl = builder.sign(signer, hashes.SHA384())
    (folder / REVOKED).write_bytes(crl.public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * _YEARS))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FleetError(f"{path} exists already; it was not changed")


def _write_private(path: Path, key: EllipticCurvePrivateKey) -> None:
    _write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write_secret(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
