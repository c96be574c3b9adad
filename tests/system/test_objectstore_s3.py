import errno
import hashlib
import multiprocessing
import pickle
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest

from data_pipeline import patience, s3store
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

    def make(*faults: int | bytes | re.Pattern[bytes], stalls: bool = False, certificate: Path | None = None) -> Proxy:
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


def read_in_parts(store: Store, results: Any) -> None:
    parts = [store.read("x", place, 1000) for place in range(20)]
    results.put((parts, store.counters.snapshot()["requests"]))


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


def test_put_replaces(store: Store, source: Path) -> None:
    store.put("x", source)
    source.write_bytes(b"")
    store.put("x", source)
    assert store.exists("x")
    assert store.read("x") == b""


def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: Store, source: Path) -> None:
    for name in ("deep/x", "deep/y"):
        store.put(name, source)
    for _ in range(2):
        store.delete("deep/x")
        assert not store.exists("deep/x")
    assert store.exists("deep/y")


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


def test_an_object_is_downloaded_with_its_sha256(
    store: Store, source: Path, large: Path, tmp_path: Path, through: Callable[..., Proxy]
) -> None:
    target = tmp_path / "target"
    for content in (b"", b"x", large.read_bytes()):
        source.write_bytes(content)
        store.put("x", source)
        target.write_bytes(b"what lay there before")
        assert store.download("x", target) == hashlib.sha256(content).hexdigest()
        assert target.read_bytes() == content
    through(*[1_000_000] * 5)
    cut = open_store(store.uri)
    target.unlink()
    assert cut.download("x", target) == hashlib.sha256(content).hexdigest()
    assert target.read_bytes() == content
    assert cut.counters.snapshot()["resumptions"] == 5
    assert cut.counters.snapshot()["bytes_read"] == len(content)


def test_a_download_tells_a_full_disk_from_a_store_that_fails(
    store: Store, source: Path, large: Path, tmp_path: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", large)
    with pytest.raises(OSError, match="No space left") as full:
        store.download("x", Path("/dev/full"))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(IsADirectoryError):
        store.download("x", tmp_path)
    with one_line(Fault, r"/y is missing$"):
        store.download("y", tmp_path / "y")
    proxy = through()
    broken = S3Store(store.uri, patience=1)
    assert broken.exists("x")
    proxy.close()
    with one_line(Fault, "/x: no connection to"):
        broken.download("x", tmp_path / "x")


def test_a_download_never_mixes_two_versions(
    store: Store, large: Path, tmp_path: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", large)
    through(*[100_000] * 4)
    replaced = threading.Event()

    class Replacing(S3Store):
        def _bear(self, *failed: Any) -> None:  # the first connection has broken: parts are on their way
            if not replaced.is_set():
                replaced.set()
                large.write_bytes(large.read_bytes()[::-1])
                store.put("x", large)
            super()._bear(*failed)

    with one_line(Fault, "/x changed while it was read; start again"):
        Replacing(store.uri).download("x", tmp_path / "x")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_have_connections_and_counters_of_their_own(store: Store, source: Path, method: str) -> None:
    store.put("x", source)
    requests = store.counters.snapshot()["requests"]
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    children = [context.Process(target=read_in_parts, args=(store, results)) for _ in range(2)]
    for child in children:
        child.start()
    ours = [store.read("x", place, 1000) for place in range(20)]
    assert store.counters.snapshot()["requests"] == requests + 20
    for child in children:
        assert results.get() == (ours, 20)
        child.join(60)
        assert child.exitcode == 0


def test_threads_read_through_one_store(store: Store, source: Path) -> None:
    store.put("x", source)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda number: store.read("x", number * 100_000, 100_000), range(30)))
    assert b"".join(parts) == CONTENT
    assert store.counters.snapshot()["bytes_read"] == len(CONTENT)


def test_a_pickled_store_holds_no_credentials(store: Store, source: Path, s3: Gateway) -> None:
    store.put("x", source)
    pickled = pickle.dumps(store)
    assert s3.access_key.encode() not in pickled
    assert s3.secret_key.encode() not in pickled
    assert pickle.loads(pickled).read("x") == CONTENT


# -- uploads in parts ------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts and a bit."""
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(3 * s3store.PART + 1))
    return path


def uploads(bucket: str) -> list[Any]:
    """Uploads in parts that are neither complete nor thrown away."""
    answer = boto3.session.Session().client("s3").list_multipart_uploads(Bucket=bucket)
    return answer.get("Uploads", [])


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(store: Store, bucket: str, large: Path) -> None:
    store.put("x", large)
    assert store.counters.snapshot()["requests"] == 1 + 4 + 1
    assert store.counters.snapshot()["retries"] == 0
    assert store.counters.snapshot()["bytes_written"] == large.stat().st_size
    assert store.read("x") == large.read_bytes()
    edge = s3store.PART - 10
    assert store.read("x", edge, 20) == large.read_bytes()[edge : edge + 20]
    assert uploads(bucket) == []


def test_an_upload_that_breaks_goes_on_with_the_parts_that_are_missing(
    store: Store, bucket: str, large: Path, through: Callable[..., Proxy]
) -> None:
    through(-3_000_000, -5_000_000, 0)
    cut = open_store(store.uri)
    cut.put("x", large)
    assert 1 <= cut.counters.snapshot()["retries"] <= 5
    assert store.read("x") == large.read_bytes()
    assert uploads(bucket) == []


@pytest.mark.parametrize("question", [rb"POST \S+\?uploads", rb"partNumber=2", rb"POST \S+\?uploadId"])
def test_an_upload_of_which_an_answer_is_lost_is_whole(
    store: Store, large: Path, through: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, question: bytes
) -> None:
    monkeypatch.setattr(s3store, "PARALLEL", 1)  # so that all goes through one connection
    proxy = through(re.compile(question))
    cut = open_store(store.uri)
    cut.put("x", large)
    assert cut.counters.snapshot()["retries"] == 1
    assert proxy.connections == 2
    assert store.read("x") == large.read_bytes()


def test_an_upload_that_fails_leaves_no_parts_and_the_old_content(
    store: Store, source: Path, bucket: str, large: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", source)
    through(*[-200_000] * 1000)  # the questions around the parts are shorter
    with one_line(Fault, r"/x: no connection to .* for \d+ s"):
        S3Store(store.uri, patience=2).put("x", large)
    assert uploads(bucket) == []
    assert store.read("x") == CONTENT


def test_uploads_and_downloads_hold_little_in_memory(store: Store, tmp_path: Path) -> None:
    size = 300 << 20
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(size)
    transfer = (
        "import resource, sys, pathlib, data_pipeline as d\n"
        "store, path = d.open_store(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store.exists('x'); first = peak(); store.put('x', path); up = peak(); store.download('x', path)\n"
        "print(up - first, peak() - up)"
    )
    call = [sys.executable, "-c", transfer, store.uri, str(path)]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    up, down = (int(kilobytes) << 10 for kilobytes in ended.stdout.split())
    assert up < (s3store.PARALLEL + 2) * s3store.PART
    assert down < 16 << 20
    assert path.stat().st_size == size


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


def test_publishing_again_after_a_lost_answer_is_no_second_publishing(
    store: Store, through: Callable[..., Proxy]
) -> None:
    proxy = through(re.compile(rb"(?i)if-none-match"))
    cut = open_store(store.uri)
    cut.publish("index.json", b"first")
    assert cut.counters.snapshot()["retries"] == 1
    assert proxy.connections == 2
    with one_line(WrongCall, "exists already"):
        cut.publish("index.json", b"first")
    assert store.read("index.json") == b"first"


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
    told = rf"^{store.uri}/x: no connection to {proxy.endpoint} for \d+ s; is the server up"
    with one_line(Fault, told):
        S3Store(store.uri, patience=2).read("x")
    assert 1 < proxy.connections < 20


def test_a_store_that_is_silent_for_all_is_waited_for_once(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    """Or a pipeline of many reads would take as many times the patience to end."""
    store.put("x", source)
    proxy = through()
    reader = S3Store(store.uri, patience=4)
    assert reader.exists("x")
    proxy.close()
    with one_line(Fault, "no connection"):
        reader.read("x")
    before = reader.counters.snapshot()["requests"]
    with one_line(Fault, "no connection"):
        reader.read("x")
    assert reader.counters.snapshot()["requests"] == before + 1


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
    assert S3Store(store.uri, read_timeout=2).read("x") == CONTENT
    assert 2 <= time.monotonic() - started < 20
    assert proxy.connections == 2


def test_a_server_that_is_silent_for_ever_ends_in_one_line(
    store: Store, source: Path, through: Callable[..., Proxy]
) -> None:
    store.put("x", source)
    proxy = through(*[100_000] + [0] * 50, stalls=True)
    reader = S3Store(store.uri, read_timeout=1, patience=2)
    with one_line(Fault, rf"^{store.uri}/x: the S3 server {proxy.endpoint} was silent for \d+ s"):
        reader.read("x")
    assert 1 <= reader.counters.snapshot()["timeouts"] <= 3
    assert reader.counters.snapshot()["seconds_waiting"] >= 1
    for action in every_action(S3Store(store.uri, read_timeout=1, patience=0), source):
        with one_line(Fault, r"was silent for \d+ s; try again"):
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
    with one_line(Fault, r"/x: the S3 server answers SlowDown for \d+ s; try again when it is less busy"):
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
        with one_line(Fault, rf"no connection to http://127\.0\.0\.1:{port} for \d+ s; .*AWS_ENDPOINT_URL_S3"):
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


@pytest.mark.parametrize("endpoint", ["http://me:hidden@127.0.0.1:1", "http://me:hidden@127.0.0.1:x"])
def test_a_password_in_the_endpoint_is_not_shown(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    for action in every_action(S3Store(store.uri, patience=0), source):
        with pytest.raises(Fault, match=r"127\.0\.0\.1") as told:
            action()
        assert "hidden" not in str(told.value)


def test_a_profile_that_does_not_exist_is_one_line(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "no-such-profile.*check the URI and the AWS settings"):
            action()


def test_a_bucket_s_name_that_cannot_be_is_one_line(s3: Gateway, source: Path) -> None:
    for action in every_action(open_store("s3://no bucket/x"), source):
        with one_line(WrongCall, "no possible name"):
            action()


# -- the AWS settings ------------------------------------------------------------------------------------------------


def test_a_profile_gives_the_endpoint_and_the_keys(
    store: Store, source: Path, s3: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    keys = f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[lab]\n{keys}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    opened = open_store(store.uri)
    opened.put("x", source)
    assert opened.read("x") == CONTENT


def test_a_server_with_a_name_finds_the_bucket_in_the_path(
    store: Store, source: Path, s3: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{s3.port}")
    opened = open_store(store.uri)
    opened.put("x", source)
    assert opened.read("x") == CONTENT


def test_https_needs_a_certificate_that_is_trusted(
    store: Store, source: Path, large: Path, tmp_path: Path, through: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    certificate = tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem"), "-out", str(certificate)]
    subprocess.run(["openssl", *request.split(), *files], check=True, capture_output=True, timeout=30)
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + (tmp_path / "key.pem").read_text())
    proxy = through(certificate=both)
    for action in every_action(open_store(store.uri), source):
        with one_line(WrongCall, "the server's certificate is not trusted; name its authority in AWS_CA_BUNDLE"):
            action()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    proxy.faults += [1_000_000]
    opened = open_store(store.uri)
    opened.put("x", source)
    opened.put("large", large)
    opened.publish("index.json", b"{}")
    assert opened.read("x") == CONTENT
    assert opened.download("large", tmp_path / "back") == hashlib.sha256(large.read_bytes()).hexdigest()
    assert opened.read("index.json") == b"{}"
