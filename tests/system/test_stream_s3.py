import boto3
import numpy as np
import pytest
import torch
import webdataset

from data_pipeline import Fault, WrongCall, open_dataset, plan_epoch, stream_batches, verify_dataset, write_dataset


@pytest.fixture(scope="module")
def made(scans):
    return scans(60, largest=300)


@pytest.fixture
def dataset(made, bucket):
    """Sixty scans in three shards of a bucket, below a prefix: one for each fold."""
    uri = f"s3://{bucket}/sets/noise"
    folds = {scan.key: number // 20 + 1 for number, scan in enumerate(made)}
    write_dataset(uri, "noise", made, folds, {}, "npy", shard_mb=1)
    dataset = open_dataset(uri)
    assert len(dataset.index.shards) == 3
    return dataset


def test_a_dataset_in_a_bucket_is_the_one_in_a_folder(dataset, made, packed):
    folder = packed(made, "npy")
    assert dataset.index.digest == folder.index.digest
    assert verify_dataset(dataset.uri) == []
    places = plan_epoch(dataset.index, [1, 2], 3, 1, 8).for_rank(2, 1)
    from_bucket, from_folder = (list(stream_batches(source, places, (32, 48), 3)) for source in (dataset, folder))
    assert len(from_bucket) == len(places)
    for one, other in zip(from_bucket, from_folder, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)


def test_webdataset_reads_the_bucket_through_our_opener(dataset, made):
    shards = [f"{dataset.uri}/{shard.name}" for shard in dataset.index.shards]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("l8"))
    assert [sample["__key__"] for sample in found] == [scan.key for scan in made]
    for sample, scan in zip(found, made, strict=True):
        assert np.array_equal(sample["image.npy"], scan.image)
        assert np.array_equal(sample["mask.png"] == 255, scan.mask)


def test_webdataset_gets_our_one_line_for_an_object_that_is_missing(dataset):
    with pytest.raises(Fault, match=rf"{dataset.uri}/other.tar is missing"):
        list(webdataset.WebDataset([f"{dataset.uri}/other.tar"], shardshuffle=False))


def test_shards_are_not_written_through_webdataset(dataset):
    with (
        pytest.raises(Fault, match=r"shards are written by `sonotrain data ingest`"),
        webdataset.TarWriter(f"{dataset.uri}/new.tar"),
    ):
        pass


def test_a_truncated_and_a_missing_object_are_named(dataset, bucket):
    client = boto3.session.Session().client("s3")
    first, second, _ = (shard.name for shard in dataset.index.shards)
    client.put_object(Bucket=bucket, Key=f"sets/noise/{first}", Body=b"short")
    client.delete_object(Bucket=bucket, Key=f"sets/noise/{second}")
    wrong = verify_dataset(dataset.uri)
    assert wrong[0] == f"{first}: 5 bytes, the index says {dataset.index.shards[0].bytes}"
    assert wrong[-1] == f"{dataset.uri}/{second} is missing"
    with pytest.raises(Fault, match=f"{dataset.uri}/shard-0000"):
        list(stream_batches(dataset, plan_epoch(dataset.index, None, 0, 0, 4).order, (32, 32)))


def test_a_second_writing_is_refused_and_the_first_dataset_stays(dataset, scans):
    others = scans(3, seed=1)
    with pytest.raises(WrongCall, match="holds a dataset already"):
        write_dataset(dataset.uri, "other", others, {scan.key: 1 for scan in others}, {})
    assert open_dataset(dataset.uri).index == dataset.index
    assert verify_dataset(dataset.uri) == []
