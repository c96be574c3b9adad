"""Hostfiles and choices of hosts, held against what DeepSpeed's launcher makes of the same."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import WrongCall
from launch.hostfile import chosen, read_hostfile

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,5}", fullmatch=True)
HOSTS = st.dictionaries(NAMES, st.integers(1, 4), min_size=1, max_size=4)


def read(folder: Path, text: str) -> dict[str, tuple[int, ...]]:
    path = folder / "hostfile"
    path.write_text(text)
    return read_hostfile(path)


def test_hosts_keep_their_order_and_comments_are_no_hosts(tmp_path: Path) -> None:
    text = "# the cluster\n\nb-2.lab slots=2  # the new one\n\ta1   slots=4\n#c slots=1\n"
    assert read(tmp_path, text) == {"b-2.lab": (0, 1), "a1": (0, 1, 2, 3)}
    assert list(read(tmp_path, text)) == ["b-2.lab", "a1"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a slots=1\nb slots=1\na slots=2\n", "line 3: a stands in line 1 already"),
        ("# hosts\na\n", "line 2: 'a' says no slots"),
        ("a slots=\n", "line 1: 'a slots=' says no slots"),
        ("a slots=0\n", "line 1: a has no slots"),
        ("a slots=two\n", "line 1: slots=two is no number"),
        ("a slots=-1\n", "line 1: slots=-1 is no number"),
        ("a slots=²\n", "line 1: slots=² is no number"),
        ("a slots=1 gpus=2\n", "says no slots"),
        ("-oProxyCommand=x slots=1\n", "line 1: -oProxyCommand=x is no name of a host"),
        ("a,b slots=1\n", "line 1: a,b is no name of a host"),
        ("", "names no host"),
        ("# a slots=1\n\n", "names no host"),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(WrongCall) as refused:
        read(tmp_path, text)
    assert complaint in str(refused.value)
    assert str(tmp_path / "hostfile") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_hostfile_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="none cannot be read as a hostfile: No such file"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "image").write_bytes(b"\x89PNG\xff")
    with pytest.raises(WrongCall, match="image cannot be read as a hostfile: it is not text"):
        read_hostfile(tmp_path / "image")


THREE = {"a": (0, 1), "b": (0, 1), "c": (0,)}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("", "", THREE),
        ("c@a", "", {"a": (0, 1), "c": (0,)}),
        ("b:1", "", {"b": (1,)}),
        ("b:1@b:0", "", {"b": (0, 1)}),
        ("", "b", {"a": (0, 1), "c": (0,)}),
        ("", "a:0@c:0", {"a": (1,), "b": (0, 1)}),
    ],
)
def test_hosts_and_slots_can_be_included_or_excluded(include: str, exclude: str, left: dict) -> None:
    assert chosen(THREE, include, exclude) == left
    assert list(chosen(THREE, include, exclude)) == list(left)


@pytest.mark.parametrize(
    ("include", "exclude", "complaint"),
    [
        ("d", "", "--include d: d is no host of the hostfile (a, b, c)"),
        ("a@", "", "--include a@: nothing is no host"),
        ("", "a:2", "--exclude a:2: 2 is no slot of a, which has 0 to 1"),
        ("a:", "", "--include a:: nothing is no slot of a"),
        ("a:x", "", "--include a:x: x is no slot of a"),
        ("", "a@b@c", "--exclude a@b@c leaves no host of a, b, c"),
        ("a", "b", "--include and --exclude contradict each other"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(include: str, exclude: str, complaint: str) -> None:
    with pytest.raises(WrongCall) as refused:
        chosen(THREE, include, exclude)
    assert complaint in str(refused.value)


@given(hosts=HOSTS, data=st.data())
def test_deepspeed_reads_and_chooses_the_same(
    tmp_path_factory: pytest.TempPathFactory, hosts: dict[str, int], data: st.DataObject
) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

    path = tmp_path_factory.getbasetemp() / "hostfile"
    path.write_text("".join(f"{name} slots={slots}\n" for name, slots in hosts.items()))
    theirs = fetch_hostfile(str(path))
    ours = read_hostfile(path)
    assert {name: len(slots) for name, slots in ours.items()} == theirs

    part = st.sampled_from(sorted(hosts)).flatmap(
        lambda name: st.lists(st.integers(0, hosts[name] - 1), unique=True).map(
            lambda slots: name + (":" + ",".join(map(str, slots)) if slots else "")
        )
    )
    # They take `a:0@a` for `a:0`, we for `a`.
    parts = data.draw(st.lists(part, min_size=1, max_size=3, unique_by=lambda each: each.partition(":")[0]))
    for choice in ({"include": "@".join(parts)}, {"exclude": "@".join(parts)}):
        expected = parse_inclusion_exclusion(
            theirs, **{"inclusion": choice.get("include", ""), "exclusion": choice.get("exclude", "")}
        )
        if expected:
            left = chosen(ours, **choice)
            assert [(name, list(slots)) for name, slots in left.items()] == list(expected.items())
        else:
            with pytest.raises(WrongCall, match="leaves no host"):
                chosen(ours, **choice)
