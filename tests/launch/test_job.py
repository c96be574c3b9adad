"""What a launch is asked for, read from the command line."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import WrongCall
from launch.job import Job, duration, node_range, variables


@pytest.mark.parametrize("verb", ["data", "models", "evaluate", "nothing-known"])
def test_only_training_verbs_can_be_launched(verb: str) -> None:
    with pytest.raises(WrongCall, match=f"{verb} cannot be launched; .*train, crossval"):
        Job((verb,))


def test_an_empty_command_is_a_wrong_call() -> None:
    with pytest.raises(WrongCall, match="nothing to launch; write after --"):
        Job(())


@pytest.mark.parametrize(
    ("option", "field"), [("--nodes", "nodes"), ("--procs", "processes"), ("--restarts", "restarts")]
)
def test_a_number_that_cannot_be_names_its_option(option: str, field: str) -> None:
    with pytest.raises(WrongCall, match=f"{option} -1 cannot be"):
        Job(("train",), **{field: -1})


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times_are_read_as_slurm_writes_them(days: int, hours: int, minutes: int, seconds: int) -> None:
    whole = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if whole:
        assert duration(f"{days}-{hours}:{minutes:02}:{seconds:02}") == whole
        assert duration(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == whole
    if minutes:
        assert duration(str(minutes)) == timedelta(minutes=minutes)
    assert duration(None) is None


@pytest.mark.parametrize("text", ["", "0", "0:00:00", "1h", "-5", "1:2", "1:30:0", "one"])
def test_what_is_no_time_is_a_wrong_call(text: str) -> None:
    with pytest.raises(WrongCall, match=r"--time-limit .* is no time; write it as H:MM:SS"):
        duration(text)


@given(st.integers(1, 99), st.integers(1, 99))
def test_elastic_is_a_range_of_nodes(least: int, most: int) -> None:
    if least <= most:
        sizes = node_range(f"{least}:{most}")
        assert sizes is not None
        assert (sizes[0], sizes[-1]) == (least, most)
        assert Job(("train",), nodes=most, elastic=sizes).sizes == sizes
    else:
        with pytest.raises(WrongCall, match="is no range of nodes"):
            node_range(f"{least}:{most}")


@pytest.mark.parametrize("text", ["", "2", "0:2", ":2", "1:", "a:b", "1:2:3", "-1:2"])
def test_what_is_no_range_is_a_wrong_call(text: str) -> None:
    with pytest.raises(WrongCall, match=r"--elastic .* is no range of nodes"):
        node_range(text)


def test_a_variable_is_given_or_taken_from_here_and_its_value_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "a=b")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert variables(["FROM_HERE", "GIVEN=x=y", "EMPTY="]) == {"FROM_HERE": "a=b", "GIVEN": "x=y", "EMPTY": ""}
    with pytest.raises(WrongCall, match="--env NOT_SET is not set here"):
        variables(["NOT_SET"])
    with pytest.raises(WrongCall) as refused:
        variables(["not a name=s3cret"])
    assert "s3cret" not in str(refused.value)
