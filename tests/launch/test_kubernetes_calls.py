"""Wrong calls of `launch kubernetes`: each is refused in one line, before anything is sent."""

import re
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import WrongCall
from launch.job import Job
from launch.kubernetes import Options, manifest
from launch.kubernetes.environment import environment_of, shown
from launch.kubernetes.names import LONGEST_NAME, require_image, require_job_name
from launch.kubernetes.quantities import GIB, MIB, bytes_of, cores_of, written
from launch.train_verbs import parsed_config
from trainer import load_config

GOOD = Options("sonotrain:0.1.0", tracking_uri="http://mlflow:5000")
ON_S3 = ("data.uri=s3://scans/bus-bra", "checkpoints.mirror=s3://runs/paper")


def refused(call: Callable[[], object], *words: str) -> None:
    """The call is refused with these words, in one line."""
    with pytest.raises(WrongCall) as wrong:
        call()
    for word in words:
        assert word in str(wrong.value)
    assert "\n" not in str(wrong.value)


def refused_job(
    options: Options, changes: tuple[str, ...], *words: str, verb: tuple[str, ...] = (), **job: object
) -> None:
    """A job with these options and changes of the preset paper is refused with these words."""
    asked = Job(verb or ("train", "paper", *changes), **job)  # type: ignore[arg-type]
    refused(lambda: manifest(asked, options, load_config(asked.verb[1], changes)), *words)


HOST_PART = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?", fullmatch=True)
PATH_PART = st.from_regex(r"[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@st.composite
def references(draw: st.DrawFn) -> str:
    """Image names built part by part, as the OCI distribution project's grammar has them."""
    host = ".".join(draw(st.lists(HOST_PART, max_size=3)))
    port = f":{draw(st.integers(1, 65535))}" if host and draw(st.booleans()) else ""
    path = "/".join(draw(st.lists(PATH_PART, min_size=1, max_size=3)))
    tag = f":{draw(TAG)}" if draw(st.booleans()) else ""
    digest = f"@sha256:{draw(st.text('0123456789abcdef', min_size=64, max_size=64))}" if draw(st.booleans()) else ""
    return (f"{host}{port}/" if host else "") + path + tag + digest


@given(references())
def test_every_image_name_of_the_grammar_is_taken(image: str) -> None:
    require_image(image)


def is_reference(text: str) -> bool:
    """The same grammar, taken apart from behind."""
    name, at, digest = text.partition("@")
    if at and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", digest):
        return False
    if ":" in name.rpartition("/")[2]:
        name, _, tag = name.rpartition(":")
        known = set(string.ascii_letters + string.digits + "_")
        if not (0 < len(tag) <= 128 and tag[0] in known and set(tag) <= known | set(".-")):
            return False
    first, *rest = name.split("/")
    host, _, port = first.partition(":")
    named = all(
        part
        and part.isascii()
        and set(part) <= set(string.ascii_letters + string.digits + "-")
        and part.strip("-") == part
        for part in host.split(".")
    )
    is_host = named and (":" not in first or port.isdecimal())
    return ((bool(rest) and is_host) or is_path(first)) and all(map(is_path, rest))


def is_path(part: str) -> bool:
    words = re.split(r"[._-]+", part)
    marks = re.findall(r"[._-]+", part)
    return all(word and set(word) <= set(string.ascii_lowercase + string.digits) for word in words) and all(
        mark in (".", "_", "__") or set(mark) == {"-"} for mark in marks
    )


@given(st.text("aZ0.-_/:@", max_size=12))
def test_what_the_grammar_has_not_is_refused_and_nothing_else(image: str) -> None:
    try:
        require_image(image)
    except WrongCall:
        taken = False
    else:
        taken = True
    assert taken == is_reference(image)


@pytest.mark.parametrize(
    "image",
    [
        "",
        "Sonotrain",
        "sonotrain:",
        "sonotrain :1",
        "sonotrain:1 ",
        "sonotrain:1\n",
        "https://registry/sonotrain",
        "registry//sonotrain",
        "sonotrain@sha256:abc",
        "sonotrain@sha256:" + "0" * 63,
        "sonotrain:" + "a" * 129,
        "a" * 256,
        "-sonotrain",
        "ultraschall/größe",
    ],
)
def test_an_image_name_that_is_none_is_refused(image: str) -> None:
    refused(lambda: Options(image), "--image", "is no name of an image")


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True))
def test_every_label_that_leaves_room_names_a_job(name: str) -> None:
    require_job_name(name)


@pytest.mark.parametrize(
    "name", ["A", "1run", "run-", "-run", "a_run", "a.run", "run\n", "a" * (LONGEST_NAME + 1), "läuft"]
)
def test_a_job_name_that_is_no_label_is_refused(name: str) -> None:
    refused(lambda: Options("sonotrain:1", name=name), "--name", repr(name))


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("namespace", "--namespace"),
        ("claim", "--claim"),
        ("s3_secret", "--s3-secret"),
        ("mlflow_secret", "--mlflow-secret"),
        ("service_account", "--service-account"),
    ],
)
@pytest.mark.parametrize("name", ["Runs", "runs/latest", "-runs", "runs_1", "a" * 64, "runs..2", " "])
def test_names_of_other_objects_are_checked(field: str, option: str, name: str) -> None:
    refused(lambda: Options("sonotrain:1", **{field: name}), f"{option} {name!r}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16Gi", 16 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("64Mi", 64 * MIB),
        ("1G", 10**9),
        ("1e9", 10**9),
        ("70000000", 70000000),
    ],
)
def test_quantities_of_memory_are_read(text: str, count: int) -> None:
    assert bytes_of("--memory", text) == count


@pytest.mark.parametrize("text", ["16GB", "16gi", "-1Gi", "much", "", "16 Gi", "1.5.2Gi", "16", "512m", "0", "٣Gi"])
def test_what_is_no_memory_or_too_little_is_refused(text: str) -> None:
    refused(lambda: bytes_of("--memory", text), "--memory", repr(text), "16Gi")


@given(st.integers(1, 2**50))
def test_bytes_are_written_so_that_they_are_enough_and_a_mebibyte_more_at_most(count: int) -> None:
    read = bytes_of("", written(count + 64 * MIB)) - 64 * MIB
    assert count <= read < count + MIB


@pytest.mark.parametrize(("text", "count"), [("8", 8), ("1.5", 1.5), ("1500m", 1.5), ("0.1", 0.1)])
def test_numbers_of_cores_are_read(text: str, count: float) -> None:
    assert float(cores_of("--cpu", text)) == count


@pytest.mark.parametrize("text", ["0", "0m", "-2", "4Gi", "two", "1.0001", "", "1e3"])
def test_what_is_no_number_of_cores_is_refused(text: str) -> None:
    refused(lambda: cores_of("--cpu", text), "--cpu", repr(text))


def test_other_options_are_checked() -> None:
    refused(lambda: Options("sonotrain:1", kind="deployment"), "--kind deployment", "trainjob, pytorchjob, job")
    refused(lambda: Options("sonotrain:1", gpus=-1), "--gpus -1")
    refused(lambda: Options("sonotrain:1", cpu="many"), "--cpu")
    refused(lambda: Options("sonotrain:1", shm="1"), "--shm '1' is 1 bytes")
    refused(lambda: Options("sonotrain:1", tracking_uri="mlflow.db"), "--tracking-uri")


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "api_key", "MyCredentials"]
)
def test_a_credential_is_refused_and_never_shown(name: str) -> None:
    with pytest.raises(WrongCall, match=name) as wrong:
        environment_of({name: "hunter2"}, GOOD)
    assert "Secret" in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


def test_a_password_in_an_address_is_refused_and_never_shown() -> None:
    for given_variables, options in (
        ({"MLFLOW_TRACKING_URI": "https://me:hunter2@mlflow"}, GOOD),
        ({}, replace(GOOD, tracking_uri="https://me:hunter2@mlflow")),
    ):
        with pytest.raises(WrongCall, match="Secret") as wrong:
            environment_of(given_variables, options)
        assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NODE_RANK", "HOME", "RAY_ADDRESS"])
def test_a_variable_that_is_set_anyway_is_refused(name: str) -> None:
    refused(lambda: environment_of({name: "1"}, GOOD), f"--env {name}")


def test_variables_are_shown_as_they_are_and_secrets_by_name() -> None:
    options = replace(GOOD, s3_secret="store")
    lines = shown(environment_of({"COST": "$(HOME) $$5"}, options))
    assert "COST=$(HOME) $$5" in lines
    assert "MLFLOW_TRACKING_URI=http://mlflow:5000" in lines
    assert "AWS_SECRET_ACCESS_KEY=(from Secret store)" in lines


def test_more_processes_than_gpus_or_cores_are_refused() -> None:
    refused_job(replace(GOOD, gpus=2), ON_S3, "--procs 3", "--gpus 2", processes=3)
    refused_job(replace(GOOD, cpu="1500m"), ON_S3, "--procs 2", "--cpu 1500m", processes=2)


def test_shared_memory_that_the_scans_do_not_fit_into_is_refused() -> None:
    refused_job(replace(GOOD, shm="3Gi"), ON_S3, "--shm 3Gi", "data.resident_gb=4", "ask for 5Gi")


def test_what_cannot_run_so_is_refused() -> None:
    refused_job(replace(GOOD, kind="job"), ON_S3, "--kind job", "--nodes is 2", nodes=2)
    refused_job(GOOD, ON_S3, "--elastic", nodes=3, elastic=range(1, 4))


def test_data_that_a_pod_cannot_reach_are_refused() -> None:
    mirror = ON_S3[1]
    refused_job(GOOD, (mirror,), "data.uri is not set")
    refused_job(GOOD, ("data.uri=datasets/bus", mirror), "data.uri=datasets/bus", "--claim")
    refused_job(GOOD, ("data.uri=[s3://scans/a,/data/b]", mirror), "data.uri=/data/b", "--claim")
    refused_job(replace(GOOD, claim="runs"), ("data.uri=/data/bus",), "data.uri=/data/bus lies outside /workspace")
    refused_job(replace(GOOD, claim="runs"), ("data.uri=../bus",), "data.uri=../bus lies outside /workspace")


def test_what_would_be_lost_with_a_pod_is_refused() -> None:
    data, mirror = ON_S3
    refused_job(GOOD, (data,), "output=runs/latest", "--claim", "checkpoints.mirror=s3://")
    refused_job(GOOD, (data, "checkpoints.mirror=mirror"), "output=runs/latest", "--claim")
    refused_job(GOOD, (data, mirror, "output=/elsewhere"), "output=/elsewhere lies outside /workspace")
    refused_job(replace(GOOD, claim="runs"), (data, "checkpoints.mirror=/elsewhere"), "checkpoints.mirror=/elsewhere")
    refused_job(replace(GOOD, tracking_uri=""), ON_S3, "MLflow", "--tracking-uri")
    manifest(
        Job(("train", "paper", *ON_S3), environment={"MLFLOW_TRACKING_URI": "http://mlflow:5000"}),
        replace(GOOD, tracking_uri=""),
        load_config("paper", ON_S3),
    )
    shares = (*ON_S3, "training.generator_zero=3")
    refused_job(GOOD, shares, "training.generator_zero=3", "--claim", nodes=2)
    manifest(Job(("train", "paper", *shares), nodes=2), replace(GOOD, claim="runs"), load_config("paper", shares))


@pytest.mark.parametrize(
    ("changes", "job", "words"),
    [
        (("tune.processes=2",), {}, ("--procs 1 is less than tune.processes=2", "write --procs 2")),
        (("tune.nodes=2",), {}, ("--nodes 1 is less than tune.nodes=2",)),
        (("tune.gpus=1",), {"processes": 4}, ("--gpus 2 is less than --procs 4", "--gpus 4", "tune.gpus=0")),
        ((), {"processes": 3}, ("--gpus 2 is less than --procs 3", "--gpus 3")),
        (("tune.gpus=0", "tune.cpus=4"), {"processes": 2}, ("--cpu 8 is less than --procs 2 x tune.cpus=4", "--cpu 9")),
        (("tune.storage=trials",), {}, ("output=runs/latest", "--claim", "tune.storage=s3://")),
        (("tune.storage=/elsewhere",), {}, ("tune.storage=/elsewhere lies outside /workspace",)),
        (("tune.scheduler=best",), {}, ("tune.scheduler",)),
    ],
)
def test_a_sweep_that_would_wait_for_ever_or_lose_its_trials_is_refused(
    changes: tuple[str, ...], job: dict[str, int], words: tuple[str, ...]
) -> None:
    verb = ("tune", "paper", ON_S3[0], "tune.storage=s3://runs/tune", *changes)
    options = replace(GOOD, gpus=2, cpu="8")
    refused(lambda: manifest(Job(verb, **job), options, parsed_config(verb)), *words)  # type: ignore[arg-type]


def test_no_other_kind_carries_out_a_sweep() -> None:
    verb = ("tune", "paper", ON_S3[0], "tune.storage=s3://runs/tune")
    refused(lambda: manifest(Job(verb), replace(GOOD, kind="job"), parsed_config(verb)), "--kind job", "RayJob")


@pytest.mark.parametrize(
    "workdir", ["/", "/tmp/runs", "/home/me", "/usr", "/etc/sonotrain", "runs", "/workspace/../opt"]
)
def test_a_working_directory_that_cannot_be_mounted_is_refused(workdir: str) -> None:
    refused_job(GOOD, ON_S3, f"--workdir {workdir}", workdir=Path(workdir))


def test_a_configuration_goes_along_only_if_it_is_whole(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("table: T\nbase: own.yaml\ncompare_to: a\nvariants: {a: {}, b: {seed: 1}}\n")
    asked = Job(("crossval", str(study), *ON_S3))
    refused(lambda: manifest(asked, GOOD, load_config("paper", ON_S3)), str(study), "own.yaml", "preset")
    large = tmp_path / "large.yaml"
    large.write_text("seed: 1\n" + "#" * 1_000_001)
    refused_job(GOOD, ON_S3, "larger than 1 MB", verb=("train", str(large)))
