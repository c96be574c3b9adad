import json
import logging
import time
from pathlib import Path

import pytest
import torch

from data_pipeline import open_store
from tests.system.radosgw import Gateway
from trainer.checkpoint_files import begin, damage, names, prune, publish
from trainer.mirror import Mirror


def published(folder: Path, step: int) -> str:
    target = folder / f"step-{step:08d}"
    begin(target)
    values = {"x": torch.arange(3_000_000) + step}  # 24 MB, so that it goes up in parts
    publish(target, {"values.safetensors": values}, {"state.json": {}})
    prune(folder, 2, 0)
    return target.name


def no_best(_: Path) -> int:
    return 0


def test_checkpoints_go_to_a_bucket_and_come_back_from_it(bucket: str, tmp_path: Path):
    mirror = Mirror(f"s3://{bucket}/run", tmp_path / "here", 2)
    assert mirror.fetch(-1, no_best) is None
    for step in (1, 2, 3):
        mirror.follow(published(tmp_path / "here", step), 0)
        mirror.close(60)
    store = open_store(f"s3://{bucket}/run")
    assert json.loads(store.read("checkpoints.json"))["checkpoints"] == ["step-00000002", "step-00000003"]
    assert not store.exists("step-00000001/manifest.json")
    assert not store.exists("step-00000001/values.safetensors")

    assert Mirror(f"s3://{bucket}/run", tmp_path / "new", 2).fetch(-1, no_best) == "step-00000003"
    assert damage(tmp_path / "new" / "step-00000003") == ""


def test_a_server_that_is_down_is_a_warning_and_what_it_missed_follows(
    bucket: str, s3: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    mirror = Mirror(f"s3://{bucket}/run", tmp_path / "here", 2)
    mirror.fetch(-1, no_best)
    s3.kill()
    try:
        began = time.monotonic()
        mirror.follow(published(tmp_path / "here", 1), 0)
        mirror.follow(published(tmp_path / "here", 2), 0)
        assert time.monotonic() - began < 20
        with caplog.at_level(logging.WARNING, logger="sonotrain"):
            mirror.close(1)
        assert "the newest checkpoint is not copied after 1 s" in caplog.text
        assert names(tmp_path / "here") == ["step-00000001", "step-00000002"]
    finally:
        s3.restore()
    mirror.follow(published(tmp_path / "here", 3), 0)
    mirror.close(60)
    listed = json.loads(open_store(f"s3://{bucket}/run").read("checkpoints.json"))["checkpoints"]
    assert listed == ["step-00000002", "step-00000003"]
