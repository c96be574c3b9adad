"""How a supervisor and the nodes of a job talk: lines of JSON over TCP, both ways, until one is not heard any more.

A node calls the supervisor, which no firewall of a cluster is likely to forbid, and proves by an HMAC that it has the
key of the attempt. What is said is not secret: log lines, steps, signals. Credentials never travel here.
"""

from __future__ import annotations

import hmac
import json
import queue
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from data_pipeline import Fault, WrongCall

LEASE = 20.0
"""Seconds without a word after which one takes the other for gone."""

BEAT = 2.0
"""Seconds between words that say only that one is there."""

_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Control:
    """What a node has to know: where its supervisor listens, the key of this attempt, and variables for its ranks."""

    address: str
    port: int
    key: str = field(repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> str:
        """For a file that none but its owner can read, or a variable of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> Control:
        """Raises WrongCall, naming the source, for anything else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as broken:
            raise WrongCall(f"{source} is not what a supervisor wrote: {type(broken).__name__}") from broken


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of a node, or None when its connection has ended."""

    node: int
    message: Mapping[str, Any] | None


class Switchboard:
    """The supervisor's end, for one attempt: whoever has the key may call. Used as a context."""

    def __init__(self, address: str) -> None:
        self.heard: queue.Queue[Heard] = queue.Queue()
        """What nodes say, in order."""
        self._key = secrets.token_hex(32)
        self._callers: dict[int, _Caller] = {}
        self._lock = threading.Lock()
        self._address = address
        board = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                board._answer(self.request)

        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = type("Server", (socketserver.ThreadingTCPServer,), {"daemon_threads": True, "address_family": family})
        self._server: socketserver.ThreadingTCPServer = server((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="control", daemon=True)

    def control(self, environment: Mapping[str, str]) -> Control:
        """What the nodes have to be told."""
        return Control(self._address, self._server.server_address[1], self._key, environment)

    def tell(self, message: Mapping[str, Any], nodes: Iterable[int] | None = None) -> None:
        """Say something to these nodes, or to all that have called."""
        with self._lock:
            callers = [caller for node, caller in self._callers.items() if nodes is None or node in nodes]
        for caller in callers:
            caller.say(message)

    def __enter__(self) -> Switchboard:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            callers = list(self._callers.values())
        for caller in callers:
            caller.close()

    def _answer(self, connection: socket.socket) -> None:
        """One call, from its proof to its end."""
        caller = _Caller(connection)
        nonce = secrets.token_hex(32)
        caller.say({"nonce": nonce})
        hello = next(caller.lines(), None) or {}
        node, proof = hello.get("node"), str(hello.get("proof"))
        if not isinstance(node, int) or not hmac.compare_digest(proof, proof_of(self._key, nonce, node)):
            caller.close()
            return
        with self._lock:
            self._callers[node] = caller
        self.heard.put(Heard(node, hello))
        caller.keep_saying()
        for message in caller.lines():
            if len(message) > 0:
                self.heard.put(Heard(node, message))
        caller.close()
        self.heard.put(Heard(node, None))


class Line:
    """A node's end. Words of the supervisor go to `on_message`, its silence or end to `on_lost`, both in a thread."""

    def __init__(
        self,
        control: Control,
        node: int,
        hello: Mapping[str, Any],
        on_message: Callable[[Mapping[str, Any]], None],
        on_lost: Callable[[], None],
        patience: float = LEASE,
    ) -> None:
        """Call the supervisor. Raises Fault where it does not answer within `patience` seconds."""
        deadline = time.monotonic() + patience
        where = f"{control.address}:{control.port}"
        while True:
            try:
                connection = socket.create_connection((control.address, control.port), timeout=LEASE)
                break
            except OSError as refused:
                if time.monotonic() > deadline:
                    raise Fault(f"the supervisor at {where} cannot be reached: {refused}") from refused
                time.sleep(0.5)
        self._caller = _Caller(connection)
        words = self._caller.lines()
        nonce = (next(words, None) or {}).get("nonce")
        if not isinstance(nonce, str):
            raise Fault(f"who answers at {where} is no supervisor of this job")
        self._caller.say({**hello, "node": node, "proof": proof_of(control.key, nonce, node)})
        self._caller.keep_saying()

        def listen() -> None:
            for message in words:
                if len(message) > 0:
                    on_message(message)
            on_lost()

        threading.Thread(target=listen, name="control", daemon=True).start()

    def say(self, message: Mapping[str, Any]) -> None:
        """Say something; in vain where nobody is there any more, which `on_lost` tells."""
        self._caller.say(message)

    def close(self) -> None:
        """End the call, after all that was said has been sent."""
        self._caller.close()


def proof_of(key: str, nonce: str, node: int) -> str:
    """That a node has the key, without saying it."""
    return hmac.new(key.encode(), f"{nonce}/{node}".encode(), "sha256").hexdigest()


class _Caller:
    """A connection on which both sides say lines of JSON; an empty object is a word without meaning."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LEASE)
        # Else words to a host without power would wait in the system for a quarter of an hour.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LEASE * 1000))
        self._connection = connection
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def say(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock, suppress(OSError):
            self._connection.sendall(line)

    def keep_saying(self) -> None:
        """Say every BEAT seconds that one is there, until closed."""

        def beat() -> None:
            while not self._closed.wait(BEAT):
                self.say({})

        threading.Thread(target=beat, name="control beat", daemon=True).start()

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """What the other says, until it ends, is silent for LEASE seconds, or says what is no message."""
        pending = b""
        while not self._closed.is_set():
            try:
                received = self._connection.recv(1 << 16)
            except OSError:  # a time-out is one
                return
            if not received:
                return
            *whole, pending = (pending + received).split(b"\n")
            if len(pending) > _LONGEST_LINE:
                return
            for line in whole:
                try:
                    message = json.loads(line)
                except ValueError:
                    return
                if not isinstance(message, dict):
                    return
                yield message

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def read_control(path: Path) -> Control:
    """A control file's content; the file is removed, for it is used once. Raises WrongCall where it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
        path.unlink()
    except OSError as missing:
        raise WrongCall(f"{path} cannot be read: {missing.strerror}") from missing
    return Control.from_json(text, str(path))
