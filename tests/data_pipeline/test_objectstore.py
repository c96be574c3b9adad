import errno
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.faults import Fault, WrongCall
from data_pipeline.objectstore import FolderStore, Store, open_store

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "a" / "store"))
    made.make()
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def everything(store: Store) -> list[str]:
    """Every file below the root, hidden ones too."""
    return sorted(path.relative_to(store.uri).as_posix() for path in Path(store.uri).rglob("*") if path.is_file())


# -- which store -----------------------------------------------------------------------------------------------------


def test_a_path_and_its_file_uri_are_one_store(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "with space"
    open_store(f"{path}/").put("x", source)
    for uri in (str(path), f"file://{path}".replace(" ", "%20"), f"file://localhost{path}/".replace(" ", "%20")):
        assert open_store(uri).read("x") == CONTENT
        assert open_store(uri).uri == str(path)


def test_a_relative_path_stays_where_it_was_meant(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("here")
    monkeypatch.chdir("/")
    store.put("x", source)
    assert (tmp_path / "here" / "x").exists()


def test_an_s3_uri_is_kept_without_superfluous_slashes() -> None:
    assert open_store("s3://bucket//some/prefix/").uri == "s3://bucket/some/prefix"
    assert open_store("s3://bucket").uri == "s3://bucket"


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///x", "gs://bucket/x", "http://host/x", "file://host/x"])
def test_what_is_no_store_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(WrongCall, match=r"^.*s3://bucket/prefix$"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/prefix", "/some/where"])
@pytest.mark.parametrize("name", ["", "/x", "../x", "a/../x", "a//x", "a/", ".", "a\\x", "a\0x"])
def test_names_that_could_lead_out_of_the_root_are_refused(uri: str, name: str, source: Path) -> None:
    store = open_store(uri)
    for action in (
        lambda: store.read(name),
        lambda: store.open(name),
        lambda: store.exists(name),
        lambda: store.download(name, source),
        lambda: store.put(name, source),
        lambda: store.publish(name, b""),
        lambda: store.delete(name),
    ):
        with pytest.raises(WrongCall, match="no object's name"):
            action()


# -- reading ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1023), st.integers(0, 1100) | st.none())
def test_a_range_is_what_a_slice_is_and_never_shorter_than_asked_for(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranges"
    folder.mkdir(exist_ok=True)
    (folder / "x").write_bytes(CONTENT)
    store = open_store(str(folder))
    if length is not None and offset + length > len(CONTENT):
        with pytest.raises(Fault, match=rf"x does not hold {length} bytes at offset {offset}"):
            store.read("x", offset, length)
    else:
        assert store.read("x", offset, length) == CONTENT[offset : None if length is None else offset + length]


def test_a_negative_range_is_refused(store: Store, source: Path) -> None:
    store.put("x", source)
    for offset, length in ((-1, None), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            store.read("x", offset, length)


def test_an_object_can_be_read_as_a_stream(store: Store, source: Path) -> None:
    store.put("deep/er/x", source)
    with store.open("deep/er/x") as stream:
        assert stream.read(10) + stream.read() == CONTENT


def test_an_object_is_downloaded_with_its_sha256(store: Store, source: Path, tmp_path: Path) -> None:
    source.write_bytes(CONTENT * 3000)
    store.put("x", source)
    for target in (tmp_path / "new", source):
        assert store.download("x", target) == hashlib.sha256(CONTENT * 3000).hexdigest()
        assert target.read_bytes() == CONTENT * 3000


def test_a_download_tells_a_full_disk_from_a_store_that_fails(store: Store, source: Path, tmp_path: Path) -> None:
    store.put("x", source)
    with pytest.raises(OSError, match="No space left") as full:
        store.download("x", Path("/dev/full"))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(IsADirectoryError):
        store.download("x", tmp_path)
    with pytest.raises(Fault, match=r"/store/y is missing$"):
        store.download("y", tmp_path / "y")


def test_a_missing_object_is_named(store: Store) -> None:
    assert not store.exists("x")
    for action in (lambda: store.read("x"), lambda: store.open("x")):
        with pytest.raises(Fault, match=r"/store/x is missing$"):
            action()


def test_requests_and_bytes_are_counted(store: Store, source: Path, tmp_path: Path) -> None:
    store.put("x", source)
    store.publish("y", b"four")
    store.exists("x")
    store.read("x", 1000, 24)
    store.download("x", tmp_path / "back")
    counted = {name: amount for name, amount in store.counters.snapshot().items() if amount}
    assert counted == {"requests": 5, "bytes_read": 24 + 1024, "bytes_written": 1024 + 4}
    assert not any(pickle.loads(pickle.dumps(store)).counters.snapshot().values())


def test_a_store_survives_pickling(store: Store, source: Path) -> None:
    store.put("x", source)
    for opened in (store, open_store("s3://bucket/prefix")):
        assert pickle.loads(pickle.dumps(opened)).uri == opened.uri
    assert pickle.loads(pickle.dumps(store)).read("x") == CONTENT


# -- writing ---------------------------------------------------------------------------------------------------------


def test_put_replaces_and_leaves_nothing_beside(store: Store, source: Path) -> None:
    store.put("x", source)
    source.write_bytes(b"new")
    store.put("x", source)
    assert store.read("x") == b"new"
    assert everything(store) == ["x"]


def test_files_get_the_rights_that_the_user_s_mask_leaves(store: Store, source: Path) -> None:
    before = os.umask(0o027)
    try:
        store.put("x", source)
        store.publish("y", b"")
    finally:
        os.umask(before)
    assert [Path(store.uri, name).stat().st_mode & 0o777 for name in "xy"] == [0o640, 0o640]


def test_a_reader_sees_the_old_content_or_the_new_and_nothing_between(store: Store, tmp_path: Path) -> None:
    contents = [bytes([digit]) * 3_000_000 for digit in (1, 2)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    store.put("x", tmp_path / "0")
    done = threading.Event()

    def write() -> None:
        for turn in range(20):
            store.put("x", tmp_path / str(turn % 2))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(store.read("x"))
    writer.join()
    assert seen <= set(contents)


def test_a_source_that_is_missing_is_named_and_nothing_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="gone is missing"):
        store.put("x", tmp_path / "gone")
    assert everything(store) == []


def test_a_writer_killed_in_the_middle_leaves_the_old_content(store: Store, source: Path, tmp_path: Path) -> None:
    store.put("x", source)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    put = "import sys, pathlib, data_pipeline as d; d.open_store(sys.argv[1]).put('x', pathlib.Path(sys.argv[2]))"
    writer = subprocess.Popen([sys.executable, "-c", put, store.uri, str(pipe)])
    with os.fdopen(os.open(pipe, os.O_RDWR), "wb", buffering=0) as feed:
        feed.write(b"half of the new content")
        deadline = time.monotonic() + 60
        while len(everything(store)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(everything(store)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
    assert store.read("x") == CONTENT


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_the_old_content(store: Store, source: Path) -> None:
    """By a limit on the size of files, which the kernel enforces like a full disk."""
    store.put("x", source)
    source.write_bytes(bytes(1 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(Fault, match=r"^.*/store/x: File too large$"):
            store.put("x", source)
        with pytest.raises(Fault, match=r"^.*/store/y: File too large$"):
            store.publish("y", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.read("x") == CONTENT
    assert everything(store) == ["x"]


def test_publishing_twice_is_refused_and_keeps_the_first(store: Store) -> None:
    store.publish("index.json", b"first")
    with pytest.raises(WrongCall, match=r"/store/index\.json exists already"):
        store.publish("index.json", b"second")
    assert store.read("index.json") == b"first"
    assert everything(store) == ["index.json"]


def test_of_eight_that_publish_at_once_one_wins(store: Store) -> None:
    barrier = threading.Barrier(8)
    won = []

    def publish(writer: int) -> None:
        barrier.wait(10)
        try:
            store.publish("index.json", b"%d" % writer)
            won.append(b"%d" % writer)
        except WrongCall:
            pass

    threads = [threading.Thread(target=publish, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert won == [store.read("index.json")]
    assert everything(store) == ["index.json"]


def test_a_deleted_object_is_gone_with_the_folders_that_it_leaves_empty(store: Store, source: Path) -> None:
    for name in ("deep/er/x", "deep/er/y", "deep/z"):
        store.put(name, source)
    for name in ("deep/er/x", "deep/er/x", "deep/never"):
        store.delete(name)
    assert everything(store) == ["deep/er/y", "deep/z"]
    store.delete("deep/er/y")
    assert [path.name for path in Path(store.uri, "deep").iterdir()] == ["z"]
    store.delete("deep/z")
    assert list(Path(store.uri).iterdir()) == []


def test_what_cannot_be_deleted_is_named(store: Store, source: Path) -> None:
    store.put("x/y", source)
    with pytest.raises(Fault, match=r"^.*/store/x: Is a directory$"):
        store.delete("x")


def test_a_place_that_cannot_be_a_folder_is_one_line(source: Path) -> None:
    for path in (source, source / "below"):
        with pytest.raises(WrongCall, match=r"^.*cannot be made a folder.*name another place$"):
            FolderStore(path).make()
