"""A search whose scans and second place are in a bucket, and whose machine is lost with all that it had written."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import psutil
import pytest

from data_pipeline import Scan, open_store
from data_pipeline.shards import write_dataset
from tests.searches import Search, require_two_cores
from tests.system.radosgw import Gateway

EPOCHS = 12
STEPS = 5
"""Iterations of an epoch: 20 scans are learnt from, four at a time."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


@pytest.fixture
def search(bucket: str, scans: Callable[[int], list[Scan]], tmp_path: Path) -> Iterator[Search]:
    """One of three trials, of which one keeps its weights."""
    require_two_cores()
    uri = f"s3://{bucket}/scans"
    made = scans(30)
    write_dataset(uri, "noise", made, {scan.key: number // 10 + 1 for number, scan in enumerate(made)}, {})
    tune = {
        "trials": 3,
        "searcher": "random",
        "scheduler": "none",
        "unseen": [],
        "keep": 1,
        "storage": f"s3://{bucket}/study",
        "space": {"objective.alpha.2": {"low": 0.01, "high": 1.0}},
    }
    search = Search(tmp_path, uri, tune, training={"epochs": EPOCHS})
    yield search
    search.close()


def test_what_a_lost_machine_had_not_finished_goes_on_elsewhere_from_the_bucket(
    search: Search, bucket: str, s3: Gateway
) -> None:
    place = open_store(f"s3://{bucket}/study")

    def copied(name: str, text: str) -> bool:
        return place.exists(name) and text in place.read(name).decode()

    mirrored = "trials/0002/fold-1/checkpoints.json"
    search.start()
    search.until(lambda: copied(mirrored, f"step-{2 * STEPS:08d}"))
    search.until(lambda: place.read("journal.jsonl").decode().count('"finished"') >= 2)
    begun = search.process.children(recursive=True)
    search.send(signal.SIGKILL)
    search.ended()
    assert psutil.wait_procs(begun, 30)[1] == []
    shutil.rmtree(search.output)

    search.start()
    assert search.ended() == 0, search.said()
    assert f"going on with the study that s3://{bucket}/study holds" in search.said()
    ended = Counter((event["trial"], event["how"]) for event in search.events("ended"))
    assert ended == {(trial, "finished"): 1 for trial in range(3)}
    assert [path.name for path in (search.output / "trials").iterdir()] == ["0002"], "only what was not finished"
    log = (search.training(2) / "trial.log").read_text()
    assert f"fetched from s3://{bucket}/study/trials/0002/fold-1" in log
    (went_on_after,) = re.findall(r"goes on after step (\d+) of", log)
    assert int(went_on_after) >= 2 * STEPS

    assert place.read("journal.jsonl") == (search.output / "journal.jsonl").read_bytes()
    best = search.study().best()[0].number
    assert kept(bucket) == {f"{best:04d}"}
    written = [path.read_bytes() for path in search.output.parent.rglob("*") if path.is_file()]
    assert not [text for text in written if s3.secret_key.encode() in text]


def kept(bucket: str) -> set[str]:
    """The trials of which the bucket holds anything."""
    client = boto3.session.Session().client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="study/trials/")
    return {entry["Key"].split("/")[2] for page in pages for entry in page.get("Contents", [])}
