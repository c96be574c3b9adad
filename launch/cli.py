"""The command `sonotrain`: its verbs, and how one that fails says so.

Nothing heavy is imported before a verb is chosen, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer

from launch.bench_verbs import bench
from launch.compare_verbs import compare
from launch.data_verbs import data
from launch.demo import demo
from launch.doctor_verb import doctor
from launch.launch_verbs import launch
from launch.model_verbs import evaluate, models, predict
from launch.terminal import complain, say
from launch.train_verbs import crossval, train
from launch.tune_verb import tune

DEBUG = "SONOTRAIN_DEBUG"
"""Set to 1, an error shows where it came from; --debug sets it."""

app = typer.Typer(
    name="sonotrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, validate and publish networks that outline breast tumours in ultrasound scans.",
    epilog="Anywhere in a call, --debug shows where an error came from. Exit status: 0 done, 1 failed, 2 wrong call, "
    "75 stopped by SIGTERM or SIGUSR1 after a checkpoint: the same call goes on.",
)
for verb in (demo, train, crossval, tune, evaluate, compare, predict, doctor):
    app.command()(verb)
for group, name in ((data, "data"), (launch, "launch"), (models, "models"), (bench, "bench")):
    app.add_typer(group, name=name)


def main() -> None:
    """Carry out the command line and exit: 0 done, 1 the work failed, 2 the call was wrong, 75 stopped to go on."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(arguments) < len(sys.argv) - 1:
        os.environ[DEBUG] = "1"  # also for the processes that a verb starts
    try:
        app(arguments, prog_name="sonotrain")
    except SystemExit as ended:  # how typer ends, also when all is well
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as failure:
        status = _tell(failure)
    else:
        status = 0
    if "RANK" in os.environ:  # one of a job's processes, be it the only one
        from trainer.processes import end_process

        end_process(status)
    sys.exit(status)


def _tell(failure: Exception) -> int:
    """Say in one line what went wrong, and give the exit status."""
    from data_pipeline.faults import Fault

    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(failure)
    if isinstance(failure, Fault):
        if failure.exit_status == os.EX_TEMPFAIL:  # what was asked for, and no error
            say(str(failure))
        else:
            complain(str(failure))
        return failure.exit_status
    if isinstance(failure, OSError) and failure.filename:
        complain(f"{failure.filename}: {failure.strerror}")
    else:
        complain(f"{type(failure).__name__}: {failure}; --debug shows where it came from")
    return 1


if __name__ == "__main__":
    main()
