"""What two nodes can say to each other over TCP: whether at all, how soon, and how much in a second."""

from __future__ import annotations

import hmac
import secrets
import socket
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

CONNECT_SECONDS = 3.0
"""For which a node is tried, and after which one that says nothing is given up."""

ROUND_TRIPS = 20
"""Of which the median is the latency."""

SENDING_SECONDS = 1.0
"""For which zeros are sent to learn the bandwidth."""

ARRIVING_SECONDS = 20.0
"""For which what was sent may be on its way: some megabytes, over whatever link."""

_PING, _SEND = b"p", b"s"
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a node listens, and the word that it wants to hear first."""

    address: str
    port: int
    word: str


class Listener:
    """Answers, on a free port of an own address, those who know the word; used as a context. Raises OSError."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family, backlog=256)
        self.peer = Peer(address, self._socket.getsockname()[1], secrets.token_hex(16))

    def __enter__(self) -> Listener:
        threading.Thread(target=self._accept, name="doctor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), name="doctor", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(ARRIVING_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError):
            said = _received(connection, len(self.peer.word))
            if not hmac.compare_digest(said, self.peer.word.encode()):
                return
            while (wish := connection.recv(1)) == _PING:
                connection.sendall(_PING)
            if wish == _SEND:
                count, piece = 0, bytearray(_PIECE)
                while size := connection.recv_into(piece):
                    count += size
                connection.sendall(str(count).encode())


def latency(peer: Peer) -> float:
    """Seconds of a round trip. Raises OSError where there is no way to the peer."""
    with _connected(peer) as connection:
        trips = []
        for _ in range(ROUND_TRIPS):
            began = time.monotonic()
            connection.sendall(_PING)
            _received(connection, 1)
            trips.append(time.monotonic() - began)
    return statistics.median(trips)


def bandwidth(peer: Peer, seconds: float = SENDING_SECONDS) -> float:
    """Bytes in a second that arrive there. Raises OSError where there is no way to the peer."""
    with _connected(peer) as connection:
        connection.sendall(_SEND)
        piece, began = bytes(_PIECE), time.monotonic()
        while time.monotonic() - began < seconds:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(ARRIVING_SECONDS)
        count = b""
        while said := connection.recv(64):
            count += said
        if not count.isdigit():
            raise ConnectionResetError("the peer did not say how much arrived")
        return int(count) / (time.monotonic() - began)


def _connected(peer: Peer) -> socket.socket:
    connection = socket.create_connection((peer.address, peer.port), timeout=CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(peer.word.encode())
    return connection


def _received(connection: socket.socket, count: int) -> bytes:
    """So many bytes. Raises OSError where the other ends before."""
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the peer has ended the connection")
        data += piece
    return data
