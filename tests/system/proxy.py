"""A TCP proxy between client and server, on loopback, that does to connections what networks and servers do."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


def answering(status: int, reason: str, code: str) -> bytes:
    """What an S3 server answers to a request that it does not carry out."""
    body = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


Fault = int | bytes | re.Pattern[bytes]


class Proxy:
    """The n-th connection meets the n-th fault, later ones pass.

    A number breaks it after so many bytes of answers, a negative one after so many bytes of questions, a pattern when
    the server has answered the first question in which it is found. Bytes are an answer that is given instead of the
    server's. Broken means cut off, or where stalls is set kept open in silence.
    The faults may be changed at any time. certificate, a file with its key, makes the proxy speak TLS.
    """

    def __init__(
        self, server: int, faults: Sequence[Fault], stalls: bool = False, certificate: Path | None = None
    ) -> None:
        self.faults = list(faults)
        self.connections = 0
        self._server, self._stalls = server, stalls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._listener = context.wrap_socket(self._listener, server_side=True, do_handshake_on_connect=False)
            scheme = "https"
        self._open: list[socket.socket] = [self._listener]
        self.endpoint = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Break every connection and take no more."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            fault = self.faults.pop(0) if self.faults else None
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: Fault | None) -> None:
        with suppress(OSError):
            if isinstance(client, ssl.SSLSocket):
                client.do_handshake()
            if isinstance(fault, bytes):
                question = b""
                while b"\r\n\r\n" not in question:
                    question += client.recv(1 << 16)
                client.sendall(fault)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):  # what is left of the question; a reset would take the answer with it
                    pass
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            self._open.append(server)
            questions = answers = None
            if isinstance(fault, int):
                questions, answers = (-fault, None) if fault < 0 else (None, fault)
            asked = threading.Event()
            pattern = fault if isinstance(fault, re.Pattern) else None

            def ask(data: bytes) -> bytes:
                if pattern is not None and pattern.search(data):
                    asked.set()
                return data

            def answer(data: bytes) -> bytes:
                return b"" if asked.is_set() and not data.startswith(b"HTTP/1.1 100 ") else data

            threading.Thread(target=self._pass_on, args=(client, server, questions, ask), daemon=True).start()
            self._pass_on(server, client, answers, answer)

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, limit: int | None, change: Callable[[bytes], bytes]
    ) -> None:
        passed = 0
        with suppress(OSError):
            while data := change(source.recv(1 << 16)):
                keep = len(data) if limit is None else min(len(data), limit - passed)
                sink.sendall(data[:keep])
                passed += keep
                if passed == limit:
                    if self._stalls:
                        return
                    break
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
