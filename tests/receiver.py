"""A receiver of webhooks: a real TLS server with a certificate of its own, that answers as a test wants."""

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "receiver.example.org"
Talk = Callable[[ssl.SSLSocket], None]
"""What the receiver does when a request has arrived."""


@dataclass(frozen=True)
class Got:
    """A request as it came in."""

    line: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    port: int
    certificate: Path
    got: list[Got] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)
    """Names in the TLS handshakes."""

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}/hooks/T0pS3cret?of=dkl"


def answering(status: str, *headers: str) -> Talk:
    return lambda connection: connection.sendall("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())


@contextmanager
def receiving(folder: Path, talk: Talk) -> Iterator[Receiver]:
    """A receiver on this machine for as long as the context lasts."""
    certificate = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = Receiver(listener.getsockname()[1], certificate)
    context.sni_callback = lambda connection, name, _: receiver.asked_for.append(name)
    thread = threading.Thread(target=_serve, args=(listener, context, receiver, talk))
    thread.start()
    try:
        yield receiver
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _serve(listener: socket.socket, context: ssl.SSLContext, receiver: Receiver, talk: Talk) -> None:
    answers = []
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            break
        answers.append(threading.Thread(target=_answer, args=(plain, context, receiver, talk)))
        answers[-1].start()
    for thread in answers:
        thread.join()


def _answer(plain: socket.socket, context: ssl.SSLContext, receiver: Receiver, talk: Talk) -> None:
    plain.settimeout(5)
    with plain, suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
        receiver.got.append(_read(connection))
        talk(connection)


def _read(connection: ssl.SSLSocket) -> Got:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(4096)
    return Got(line, headers, body.decode())


def _certificate(folder: Path) -> Path:
    """Self-signed, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    at = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - datetime.timedelta(days=1))
        .not_valid_after(at + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "receiver.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*form))
    return path
