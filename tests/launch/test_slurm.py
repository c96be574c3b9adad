"""The batch script of a launch under Slurm, what is asked of sbatch, and what is refused; tests/system has a Slurm."""

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import WrongCall
from launch.job import Job
from launch.slurm import SlurmOptions, plan, run
from launch.slurm.batch import run_batch
from launch.slurm.script import batch_script
from launch.train_verbs import parsed_config
from tests.launch.command import Command
from trainer.crossval import of_fold

TRAIN = ("train", "quick", "output=run")


def directives(script: str) -> dict[str, str]:
    """The options in a script, each on a line of its own before the first command."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH "):
            break
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        found[name] = value
    return found


def executed(script: str, **environment: str) -> list[str]:
    """The program that a script becomes, and its arguments, as a shell reads them."""
    checked = subprocess.run(["/bin/bash", "-n"], input=script.encode(), capture_output=True)
    assert not checked.stderr
    instead = 'exec() { printf "%s\\0" "$@"; exit; }\n'
    done = subprocess.run(["/bin/bash"], input=(instead + script).encode(), capture_output=True, env=environment)
    assert not done.stderr
    return done.stdout.decode().split("\0")[:-1]


def test_a_script_asks_for_what_the_job_needs_and_becomes_its_supervisor(tmp_path: Path) -> None:
    job = Job(TRAIN, nodes=2, processes=4, workdir=tmp_path, restarts=5, time_limit=timedelta(hours=25, minutes=1))
    script = batch_script(job, Path("run"), gpus=True)
    assert directives(script) == {
        "job-name": "sonotrain-run",
        "nodes": "2",
        "cpus-per-task": "4",
        "gpus-per-node": "4",
        "time": "1-01:01:00",
        "signal": "B:USR1@120",
        "open-mode": "append",
        "export": "ALL",
        "chdir": str(tmp_path),
        "output": f"{tmp_path}/run/logs/slurm-%j.out",
        "requeue": "",
    }
    program = executed(script)
    assert program[-len(TRAIN) - 7 :] == ["launch", "slurm-batch", "--procs", "4", "--restarts", "5", "--", *TRAIN]


def test_a_job_of_two_minutes_is_asked_to_stop_after_one() -> None:
    script = batch_script(Job(TRAIN, time_limit=timedelta(minutes=2)), Path("run"), gpus=False)
    assert directives(script)["signal"] == "B:USR1@60"


def test_an_elastic_job_takes_what_nodes_there_are_and_stays_when_one_is_lost() -> None:
    script = batch_script(Job(TRAIN, nodes=4, elastic=range(2, 5)), Path("run"), gpus=False)
    assert directives(script)["nodes"] == "2-4"
    assert "no-kill" in directives(script)
    assert executed(script)[-len(TRAIN) - 3 : -len(TRAIN)] == ["--elastic", "2:4", "--"]


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_every_argument_reaches_the_supervisor_as_it_was_written(arguments: list[str]) -> None:
    script = batch_script(Job(("train", *arguments)), Path("run"), gpus=False)
    program = executed(script)
    assert program[program.index("train") :] == ["train", *arguments]


@settings(max_examples=40)
@given(st.text(st.characters(exclude_characters="\0/\\", categories=["L", "N", "P", "S", "Zs"]), min_size=1))
def test_no_name_of_a_folder_adds_to_the_script(name: str) -> None:
    try:
        script = batch_script(Job(TRAIN, workdir=Path("/workspace") / name), Path("run"), gpus=False)
    except WrongCall:
        assert not name.isprintable()
        return
    plain = batch_script(Job(TRAIN, workdir=Path("/workspace")), Path("run"), gpus=False)
    assert directives(script).keys() == directives(plain).keys()
    chdir = directives(script)["chdir"]
    assert (chdir[1:-1].replace('\\"', '"') if chdir.startswith('"') else chdir) == str(Path("/workspace") / name)
    assert executed(script) == executed(plain)


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\tb"])
def test_a_folder_that_slurm_cannot_write_to_is_refused(name: str) -> None:
    with pytest.raises(WrongCall, match=r"cannot be written in a script of Slurm"):
        batch_script(Job(TRAIN), Path(name), gpus=False)


def test_a_per_cent_sign_in_a_folder_is_no_pattern_of_slurm() -> None:
    script = batch_script(Job(TRAIN, workdir=Path("/workspace")), Path("50%j"), gpus=False)
    assert directives(script)["output"] == "/workspace/50%%j/logs/slurm-%j.out"


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("no_slurm")
def test_a_task_of_an_array_trains_what_crossval_would() -> None:
    verb = ("crossval", "quick", "folds=[2, 3]", "output=some where", "checkpoints.mirror=s3://bucket/mine/")
    preview = plan(Job((*verb, "--json", "told.json")), SlurmOptions(array=True), ["--account=us"])
    assert preview.commands == [
        ["sbatch", "--parsable", "--account=us", "--array=2,3"],
        [
            *("sbatch", "--parsable", "--account=us", "--nodes=1", "--cpus-per-task=1"),
            *("--dependency=afterok:ARRAY", "--kill-on-invalid-dep=yes"),
        ],
    ]
    task = executed(preview.script, SLURM_ARRAY_TASK_ID="3")
    assert parsed_config(task[task.index("--") + 1 :]) == of_fold(parsed_config(verb), 3)
    behind = executed(preview.script)
    assert behind[behind.index("crossval") :] == [*verb, "--json", "told.json"]
    assert behind[behind.index("--procs") + 1] == "1"


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("verb", [TRAIN, ("crossval", "paper-ablation")])
def test_only_folds_of_one_configuration_become_an_array(verb: tuple[str, ...]) -> None:
    with pytest.raises(WrongCall, match=r"^--array is for the folds of crossval CONFIG"):
        plan(Job(verb), SlurmOptions(array=True), [])


@pytest.mark.usefixtures("no_slurm")
def test_a_number_of_nodes_that_cannot_share_the_batch_is_refused() -> None:
    with pytest.raises(WrongCall, match=r"^training.batch=8 cannot be shared by 3 processes"):
        plan(Job(TRAIN, nodes=4, elastic=range(2, 5)), SlurmOptions(), [])


@pytest.mark.usefixtures("no_slurm")
def test_values_of_variables_are_not_shown() -> None:
    preview = plan(Job(TRAIN, environment={"TOKEN": "s3cret"}), SlurmOptions(), [])
    assert preview.environment == ["TOKEN=(hidden)"]
    assert "s3cret" not in str(preview)


def test_without_slurm_nothing_is_submitted_and_nothing_written(no_slurm: Path) -> None:
    with pytest.raises(WrongCall, match=r"^Slurm is not installed here: there is no sbatch"):
        run(Job(TRAIN), SlurmOptions(), [])
    assert list(no_slurm.iterdir()) == []


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("passed_on", "said"),
    [
        (["-N2"], "-N: under launch slurm it is written --nodes or --elastic"),
        (["--account", "us", "--ntasks=4"], "--ntasks: under launch slurm it is written --procs"),
        (["--time", "5"], "--time: under launch slurm it is written --time-limit"),
        (["--wrap=true"], "--wrap: under launch slurm it is written the verb behind --"),
        (["job.sh"], "job.sh is neither an option nor the value of one"),
        (["--account", "us", "job.sh"], "job.sh is neither an option nor the value of one"),
        (["--export=HOME"], "--export and --env say the same"),
    ],
)
def test_what_a_launch_has_words_for_is_not_handed_on(passed_on: list[str], said: str) -> None:
    with pytest.raises(WrongCall, match=f"^{re.escape(said)}"):
        plan(Job(TRAIN, environment={"TOKEN": "s3cret"}), SlurmOptions(), passed_on)


def test_a_supervisor_outside_of_a_job_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(WrongCall, match=r"^SLURM_JOB_ID is not set: slurm-batch is what a batch job runs"):
        run_batch(Job(TRAIN), tmp_path)


def test_a_dry_run_shows_the_script_and_what_it_comes_to(
    sonotrain: Command, dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    call = ("launch", "slurm", "--nodes", 2, "--procs", 2, "--partition", "big", "--dry-run", "--json", "told.json")
    shown = sonotrain(*call, "--", "train", "quick", f"data.uri={dataset}", "training.batch=4")
    assert shown.status == 0, shown.errors
    assert "sbatch --parsable --partition big" in shown.output
    assert "#SBATCH --nodes=2" in shown.output
    told = json.loads(Path("told.json").read_text())
    assert (told["world_size"], told["global_batch"]) == (4, 4)
    assert told["commands"] == [["sbatch", "--parsable", "--partition", "big"]]
    assert told["script"].startswith("#!/bin/bash\n#SBATCH ")
    assert not (tmp_path / "runs").exists()
