"""TLS for tests: a certificate of our own, and a proxy that carries connections through (``CONNECT``)."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType


def make_certificate(folder: Path, host: str) -> ssl.SSLContext:
    """A server's context for ``host``; its certificate, ``cert.pem`` in ``folder``, is also what a client trusts."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    what = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    whom = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"]
    where = ["-keyout", str(key), "-out", str(certificate), "-addext", "keyUsage=digitalSignature,keyCertSign"]
    subprocess.run(["openssl", *what, *whom, *where], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@dataclass(slots=True)
class ConnectProxy:
    """A proxy on loopback that opens tunnels to one port, whatever it is asked for; a context manager.

    ``heads`` are the requests it got; with ``tls`` it is itself an https proxy.
    """

    port_behind: int
    tls: ssl.SSLContext | None = None
    heads: list[str] = field(default_factory=list)
    _listener: socket.socket = field(init=False, repr=False)

    def __enter__(self) -> ConnectProxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client = self.tls.wrap_socket(client, server_side=True) if self.tls else client
        head = b""
        while b"\r\n\r\n" not in head and (received := client.recv(4096)):
            head += received
        self.heads.append(head.decode())
        behind = socket.create_connection(("127.0.0.1", self.port_behind))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=_carry, args=(client, behind), daemon=True).start()
        _carry(behind, client)


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while received := source.recv(1 << 16):
            target.sendall(received)
    except OSError:
        pass
    finally:
        target.close()
