"""What the doctor finds of stores in S3, on a real server."""

import boto3
import pytest

from launch.doctor.finding import Finding, Wanted
from launch.doctor.services import look_at_dataset, look_at_mirror
from trainer.config import load_config


def wanted(*changes: str) -> Wanted:
    return Wanted(load_config("quick", changes), given=True, nodes=1, processes=1)


def of_mirror(uri: str) -> Finding:
    (finding,) = look_at_mirror(wanted(f"checkpoints.mirror={uri}"))
    return finding


def test_a_mirror_is_written_read_and_left_as_it_was(bucket: str) -> None:
    finding = of_mirror(f"s3://{bucket}/runs")
    assert finding.state == "ok", finding.found
    assert boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_mirror_that_is_not_there_or_not_ours_fails_and_shows_no_secret(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = of_mirror(f"s3://{bucket}-of-nobody/runs")
    assert missing.state == "failed"
    assert "does not exist" in missing.found + missing.advice
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anotherSecret")
    refused = of_mirror(f"s3://{bucket}/runs")
    assert refused.state == "failed"
    assert "AWS_SECRET_ACCESS_KEY" in refused.advice
    assert "anotherSecret" not in str(refused)


def test_a_dataset_that_is_not_in_its_bucket_fails(bucket: str) -> None:
    (finding,) = look_at_dataset(wanted(f"data.uri=s3://{bucket}/nowhere"))
    assert finding.state == "failed"
    assert "nowhere" in finding.found
    assert finding.advice
