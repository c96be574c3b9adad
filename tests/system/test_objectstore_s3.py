import hashlib
import multiprocessing
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import pytest

from data_pipeline import patience
from data_pipeline.faults import Fault, WrongCall
from data_pipeline.objectstore import Store, open_store
from data_pipeline.s3store import S3Store
from tests.system.proxy import Proxy, answering
from tests.system.radosgw import Gateway

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/some/prefix/")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def through(s3: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """A factory of proxies before the server, to which new stores then go."""
    made: list[Proxy] = []

    def make(*faults: int | bytes, stalls: bool = False, certificate: Path | None = None) -> Proxy:
        made.append(Proxy(s3.port, faults, stalls, certificate))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made[-1].endpoint)
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@contextmanager
def one_line(kind: type[Fault], text: str, *secrets: str, within: float = 20.0) -> Iterator[None]:
    """The block ends with this kind of fault in time, in one line that holds the text and no secret."""
    started = time.monotonic()
    with pytest.raises(kind, match=text) as told:
        yield
    assert type(told.value) is kind
    assert time.monotonic() - started < within
    assert "\n" not in str(told.value)
    assert not any(secret in str(told.value) for secret in secrets)


def read_in_another_process(pickled: bytes, name: str) -> str:
    return hashlib.sha256(pickle.loads(pickled).read(name)).hexdigest()


# -- whole objects and parts -----------------------------------------------------------------------------------------


def test_what_is_put_is_read_whole_in_parts_and_as_a_stream(store: Store, source: Path) -> None:
    store.make()
    assert not store.exists("x")
    store.put("x", source)
    assert store.exists("x")
    assert store.read("x") == CONTENT
    for offset, length in ((0, 1), (5, 100_000), (2_999_990, 10), (2_999_990, None), (7, 0)):
        assert store.read("x", offset, length) == CONTENT[offset : None if length is None else offset + length]
    with store.open("x") as stream:
        assert stream.read(1000) + stream.read() == CONTENT


def test_the_prefix_holds_the_object(store: Store, bucket: str, source: Path) -> None:
    store.put("deep/x", source)
    names = boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert [each["Key"] for each in names] == ["some/prefix/deep/x"]


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(random.Random(1).randbytes(70_000_000))
    store.put("large", large)
    assert hashlib.sha256(store.read("large")).digest() == hashlib.sha256(large.read_bytes()).digest()
    assert store.read("large", 33_554_400, 64) == large.read_bytes()[33_554_400:33_554_464]


def test_put_replaces(store: Store, source: Path) -> None:
    store.put("x", source)
    source.write_bytes(b"")
    store.put("x", source)
    assert store.exists("x")
    assert store.read("x") == b""


def test_a_range_beyond_the_end_is_a_fault(store: Store, source: Path) -> None:
    store.put("x", source)
    with one_line(Fault, "x does not hold 11 bytes at offset 2999990"):
        store.read("x", 2_999_990, 11)
    with one_line(Fault, "x ends before the bytes asked for"):
        store.read("x", 3_000_000, 1)


def test_a_missing_object_is_named(store: Store, tmp_path: Path) -> None:
    for action in (lambda: store.read("x"), lambda: store.open("x"), lambda: store.read("x", 5, 5)):
        with one_line(Fault, rf"^{store.uri}/x is missing$"):
            action()
    with one_line(Fault, "gone cannot be read: No such file"):
        store.put("x", tmp_path / "gone")


def test_threads_and_processes_read_through_one_store(store: Store, source: Path) -> None:
    store.put("x", source)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda number: store.read("x", number * 100_000, 100_000), range(30)))
    assert b"".join(parts) == CONTENT
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            jobs = [pool.apply_async(read_in_another_process, (pickle.dumps(store), "x")) for _ in range(4)]
            assert {job.get(60) for job in jobs} == {hashlib.sha256(CONTENT).hexdigest()}


def test_a_forked_process_makes_connections_of_its_own(store: Store, source: Path) -> None:
    store.put("x", source)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put([store.read("x", place, 1000) for place in range(20)]))
    child.start()
    ours = [store.read("x", place, 1000) for place in range(20)]
    child.join(60)
    assert child.exitcode == 0
    assert results.get() == ours == [CONTENT[place : place + 1000] for place in range(20)]


# -- publishing ------------------------------------------------------------------------------------------------------


def test_publishing_twice_is_refused_and_keeps_the_first(store: Store) -> None:
    store.publish("index.json", b"first")
    with one_line(WrongCall, rf"^{store.uri}/index\.json exists already"):
        store.publish("index.json", b"second")
    assert store.read("index.json") == b"first"


def test_of_eight_that_publish_at_once_one_wins(store: Store) -> None:
    barrier = threading.Barrier(8)

    def publish(writer: int) -> bytes | None:
        barrier.wait(10)
        try:
            store.publish("index.json", b"%d" % writer)
        except WrongCall:
            return None
        return b"%d" % writer

    with ThreadPoolExecutor(8) as pool:
        won = [content for content in pool.map(publish, range(8)) if content is not None]
    assert won == [store.read("index.json")]


# -- broken connections ----------------------------------------------------------------------------------------------


def test_a_body_cut_twice_is_resumed_and_equal(store: Store, source: Path, through: Callable[..., Proxy]) -> None:
    store.put("x", source)
    proxy = through(1_000_000, 700_001)
    assert open_store(store.uri).read("x") == CONTENT
    assert proxy.connections == 3
    proxy.faults += [400_000, 500_000]
    with open_store(store.uri).open("x") as stream:
        assert b"".join(iter(lambda: stream.read(77_777), b"")) == CONTENT
    assert proxy.connections == 6


def test_a_part_cut_twice_is_resumed_and_equal(store: Store, source: Path, through: Callable[..., Proxy]) -> None:
    store.put("x", source)
    proxy = through(300_000, 300_000)
    assert open_store(store.uri).read("x", 1_000_000, 900_000) == CONTENT[1_000_000:1_900_000]
    assert proxy.connections == 3


def test_a_body_cut_again_and_again_comes_to_its_end(store: Store, source: Path, through: Callable[..., Proxy]) -> None:
    store.put("x", source)
    proxy = through(*[200_000] * 50)
    reader = open_store(store.uri)
    assert reader.read("x") == CONTENT
    counted = reader.counters.snapshot()
    assert counted["resumptions"] == counted["retries"] == proxy.connections - 1 >= 15
    assert counted["requests"] == proxy.connections
    assert counted["bytes_read"] == len(CONTENT)


@pytest.mark.parametrize("fault", [0, 150], ids=["before the answer", "within its head"])
def test_a_server_that_gives_no_byte_ends_in_one_line_within_the_patience(
    store: Store, source: Path, through: Callable[..., Proxy], fault: int
) -> None:
    store.put("x", source)
    proxy = through(*[fault] * 1000)
    with one_line(Fault, rf"^{store.uri}/x: no connection to {proxy.endpoint} for [234] s; is the server up", within=5):
        S3Store(store.uri, patience=2).read("x")
    assert 3 < proxy.connections < 20


def test_a_store_that_is_silent_for_all_is_waited_for_once(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    """Or a pipeline of many reads would take as many times the patience to end."""
    store.put("x", source)
    proxy = through()
    reader = S3Store(store.uri, patience=2)
    assert reader.exists("x")
    proxy.close()
    for within in (6, 1):
        with one_line(Fault, "no connection", within=within):
            reader.read("x")


def test_an_object_that_changes_while_its_body_is_cut_is_not_mixed(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", source)
    through(1_000_000)
    with open_store(store.uri).open("x") as stream:
        assert stream.read(100_000) == CONTENT[:100_000]
        source.write_bytes(CONTENT[::-1])
        store.put("x", source)
        with one_line(Fault, rf"^{store.uri}/x changed while it was read"):
            stream.read()


def test_a_body_that_stalls_is_resumed_after_the_time_out(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", source)
    proxy = through(1_000_000, stalls=True)
    started = time.monotonic()
    assert S3Store(store.uri, read_timeout=1).read("x") == CONTENT
    assert 1 <= time.monotonic() - started < 10
    assert proxy.connections == 2


def test_a_server_that_is_silent_for_ever_ends_in_one_line(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", source)
    proxy = through(*[100_000] + [0] * 50, stalls=True)
    reader = S3Store(store.uri, read_timeout=1, patience=2)
    with one_line(Fault, rf"^{store.uri}/x: the S3 server {proxy.endpoint} was silent for [234] s", within=8):
        reader.read("x")
    assert 2 <= reader.counters.snapshot()["timeouts"] <= 3
    assert reader.counters.snapshot()["seconds_waiting"] >= 1
    for action in every_action(S3Store(store.uri, read_timeout=1, patience=0), source):
        with one_line(Fault, r"was silent for \d+ s; try again", within=8):
            action()


def test_a_busy_server_costs_every_action_only_time(store: Store, source: Path, through: Callable[..., Proxy]) -> None:
    store.put("x", source)
    for number in range(7):
        proxy = through(*[answering(503, "Slow Down", "SlowDown")] * 2)
        tried = open_store(store.uri)
        with suppress(WrongCall):  # of publishing, for the object is there
            every_action(tried, source)[number]()
        assert tried.counters.snapshot()["throttled"] == tried.counters.snapshot()["retries"] == 2
        assert proxy.connections == 3
    assert open_store(store.uri).read("x") == CONTENT


@pytest.mark.parametrize(
    ("answer", "throttled"),
    [
        (answering(429, "Too Many Requests", "TooManyRequests"), 1),
        (answering(400, "Bad Request", "RequestTimeout"), 0),
        (answering(500, "Internal Server Error", "InternalError"), 0),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 0),
        (b"nonsense\r\n\r\n", 0),
    ],
    ids=["429", "400 RequestTimeout", "500", "502 of no S3 server", "nonsense"],
)
def test_an_error_that_may_pass_is_tried_again(
    store: Store, source: Path, through: Callable[..., Proxy], answer: bytes, throttled: int
) -> None:
    through(answer)
    tried = open_store(store.uri)
    tried.put("x", source)
    through(answer)
    again = open_store(store.uri)
    assert again.read("x") == CONTENT
    for counted in (tried.counters.snapshot(), again.counters.snapshot()):
        assert counted["retries"] == 1
        assert counted["throttled"] == throttled


def test_a_server_that_throttles_for_ever_ends_in_one_line(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    through(*[answering(503, "Slow Down", "SlowDown")] * 1000)
    with one_line(Fault, r"/x: the S3 server answers SlowDown for [123] s; try again when it is less busy", within=5):
        S3Store(store.uri, patience=1).read("x")


def test_what_lasts_is_not_tried_again(store: Store, source: Path) -> None:
    for uri, action in ((store.uri, 2), (store.uri, 4), ("s3://no-such-bucket/x", 2), ("s3://no-such-bucket/x", 5)):
        tried = open_store(uri)
        with pytest.raises(Fault):
            every_action(tried, source)[action]()
        assert tried.counters.snapshot()["requests"] == 1
        assert tried.counters.snapshot()["retries"] == 0


# -- wrong calls -----------------------------------------------------------------------------------------------------


def every_action(store: Store, source: Path) -> list[Callable[[], object]]:
    return [
        store.make,
        lambda: store.exists("x"),
        lambda: store.read("x"),
        lambda: store.read("x", 5, 5),
        lambda: store.open("x"),
        lambda: store.put("x", source),
        lambda: store.publish("x", b"content"),
    ]


def test_a_bucket_that_does_not_exist_is_one_line(s3: Gateway, source: Path) -> None:
    for action in every_action(open_store("s3://no-such-bucket/prefix"), source):
        with one_line(WrongCall, r"^s3://no-such-bucket/prefix.*: the bucket no-such-bucket does not exist"):
            action()


def test_a_wrong_secret_is_one_line_without_it(
    store: Store, source: Path, s3: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "check AWS_SECRET_ACCESS_KEY", "not-the-secret", s3.access_key, s3.secret_key):
            action()


def test_a_wrong_access_key_is_one_line_without_it(
    store: Store, source: Path, s3: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not-the-key")
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "check AWS_ACCESS_KEY_ID", "not-the-key", s3.secret_key):
            action()


def test_no_credentials_are_one_line(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            action()


def test_an_endpoint_where_nobody_listens_is_one_line(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    for action in every_action(S3Store(store.uri, patience=0.5), source):
        with one_line(Fault, rf"no connection to http://127\.0\.0\.1:{port} for 1 s; .*AWS_ENDPOINT_URL_S3", within=5):
            action()


def test_a_store_that_never_answered_is_given_up_soon(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PATIENCE", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://no-such-host.invalid:7480")
    with one_line(Fault, r"no connection to http://no-such-host\.invalid:7480 for \d+ s"):
        open_store(store.uri).make()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp//x"])
def test_an_endpoint_that_is_no_address_is_one_line(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "check the URI and the AWS settings"):
            action()


def test_a_profile_that_does_not_exist_is_one_line(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "no-such-profile.*check the URI and the AWS settings"):
            action()


def test_a_bucket_s_name_that_cannot_be_is_one_line(s3: Gateway, source: Path) -> None:
    for action in every_action(open_store("s3://no bucket/x"), source):
        with one_line(WrongCall, "no possible name"):
            action()
