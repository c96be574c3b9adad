"""A search on a Ray cluster of several hosts, and what it loses with one of them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import Dataset
from tests.searches import Search
from tests.system.hosts import HEAD, Hosts
from tests.system.ray_cluster import ray_cluster

EPOCHS = 20
STEPS = 5
"""Iterations of an epoch: 20 scans are learnt from, four at a time."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Begin = Callable[..., Search]


@pytest.fixture(scope="module")
def dataset(packed: Callable[..., Dataset]) -> Dataset:
    """30 scans in three folds."""
    return packed(30)


@pytest.fixture
def begin(hosts: Hosts, dataset: Dataset, tmp_path: Path) -> Iterator[Begin]:
    """Start a search at the head, on a cluster that is joined in this environment."""
    searches: list[Search] = []

    def make(environment: dict[str, str], **tune: Any) -> Search:
        usual = {"searcher": "random", "scheduler": "none", "unseen": [], "retries": 2}
        space = {"objective.alpha.2": {"low": 0.01, "high": 1.0}}
        search = Search(
            tmp_path, dataset.uri, {**usual, "space": space, **tune}, training={"epochs": EPOCHS}, validation={}
        )
        searches.append(search)
        search.start(lambda *program, **options: hosts.start(HEAD, *program, **options), **environment)
        return search

    yield make
    for search in searches:
        search.close()


def began(search: Search, trial: int) -> list[str]:
    """The hosts on which the attempts of a trial began."""
    return [event["node"] for event in search.events("began") if event["trial"] == trial]


def is_complete(search: Search, trials: int, lost: int = 0) -> None:
    """Every trial has ended once and told of every epoch once, or of all but so many that were lost."""
    assert search.ended() == 0, search.said()
    assert Counter((event["trial"], event["how"]) for event in search.events("ended")) == {
        (trial, "finished"): 1 for trial in range(trials)
    }
    told = [(event["trial"], event["epoch"]) for event in search.events("report")]
    assert len(told) == len(set(told)) >= trials * EPOCHS - lost
    assert set(told) <= {(trial, epoch) for trial in range(trials) for epoch in range(1, EPOCHS + 1)}


def went_on_after(search: Search, trial: int) -> int:
    """The step after which the last attempt of a trial's training went on."""
    said = (search.training(trial) / "trial.log").read_text()
    return int(re.findall(r"goes on after step (\d+) of", said)[-1])


def newest(search: Search, trial: int) -> int:
    """The step of its newest checkpoint, 0 for none."""
    return int((search.checkpoints(trial) or ["step-0"])[-1].removeprefix("step-"))


def test_trials_run_on_both_nodes_and_a_lost_node_costs_what_came_after_the_last_checkpoint(
    hosts: Hosts, begin: Begin
) -> None:
    with ray_cluster(hosts, ["node1", "node2"]) as environment:
        search = begin(environment, trials=2)
        search.until(lambda: all(newest(search, trial) >= 3 * STEPS for trial in (0, 1)))
        assert {began(search, 0)[0], began(search, 1)[0]} == {"node1", "node2"}
        lost = next(trial for trial in (0, 1) if began(search, trial) == ["node2"])
        hosts.power_off("node2")
        kept = newest(search, lost)
        assert kept < EPOCHS * STEPS
        is_complete(search, trials=2)
        assert began(search, lost) == ["node2", "node1"]
        assert began(search, 1 - lost) == ["node1"]
        assert went_on_after(search, lost) == kept
        (failed,) = search.events("failed")
        assert (failed["trial"], failed["why"]) == (lost, "its machine was lost")


def test_a_trial_of_two_machines_goes_on_on_those_that_are_left(hosts: Hosts, begin: Begin) -> None:
    def at_work() -> set[str]:
        return {name for name in hosts.names if hosts.is_up(name) and is_training(hosts, name)}

    with ray_cluster(hosts, hosts.names) as environment:
        search = begin(environment, trials=1, nodes=2)
        search.until(lambda: newest(search, 0) >= 3 * STEPS)
        first = at_work()
        assert len(first) == 2
        assert (search.training(0) / "logs/rank-1.log").exists()
        (leading,) = began(search, 0)
        hosts.power_off(*(first - {leading}))
        kept = newest(search, 0)
        assert kept < EPOCHS * STEPS
        search.until(lambda: len(began(search, 0)) > 1)
        search.until(lambda: len(at_work()) == 2)
        assert at_work() == set(hosts.names) - (first - {leading})
        is_complete(search, trials=1)
        assert went_on_after(search, 0) >= kept
        deadline = time.monotonic() + 20
        while at_work():
            assert time.monotonic() < deadline, at_work()
            time.sleep(0.2)


def test_hosts_that_share_no_output_go_on_from_the_second_place(hosts: Hosts, begin: Begin, tmp_path: Path) -> None:
    second, trials = tmp_path / "second", tmp_path / "study/trials"
    trials.mkdir(parents=True)
    for name in ("node1", "node2"):
        mounted = hosts.run(name, "mount", "-t", "tmpfs", "tmpfs", str(trials))
        assert mounted.returncode == 0, mounted.stderr
    with ray_cluster(hosts, ["node1", "node2"]) as environment:
        search = begin(environment, trials=1, storage=str(second))
        mirrored = second / "trials/0000/fold-1/checkpoints.json"
        search.until(lambda: mirrored.exists() and f"step-{3 * STEPS:08d}" in mirrored.read_text())
        (first,) = began(search, 0)
        assert not search.checkpoints(0)  # seen from the head
        kept = int(re.findall(r"step-(\d+)", mirrored.read_text())[-1])
        hosts.power_off(first)
        is_complete(search, trials=1, lost=1)  # the last checkpoint's DSC may have been known there alone
        (other,) = {"node1", "node2"} - {first}
        assert began(search, 0) == [first, other]
        said = hosts.run(other, "cat", str(search.training(0) / "trial.log")).stdout
        assert f"fetched from {second}" in said
        assert int(re.findall(r"goes on after step (\d+) of", said)[-1]) >= kept


def is_training(hosts: Hosts, name: str) -> bool:
    """Whether a host has a rank of a training."""
    return any("launch.cli train" in command for command in hosts.processes(name).values())
