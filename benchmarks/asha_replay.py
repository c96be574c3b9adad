"""Successive halving against the full search, on one recorded study: epochs saved, and what was missed for it.

    python benchmarks/asha_replay.py STUDY --json FILE --figure FILE [--reductions 2,3,4] [--first-rungs 1] [--slots 1]

STUDY is the folder of a study whose trials were all trained to the end (tune.scheduler=none). Trainings are the same to
the bit whenever they are repeated, so Ray's scheduler, given these curves, decides as it would have in a search of its
own; in the order in which the study began its trials, and in 1000 others.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tuning.journal import read_journal
from tuning.playing import plan_of
from tuning.replay import ORDERS, Replayed, interval_of_best, replay
from tuning.replay_figure import draw_replays
from tuning.settings import load_tuning


def main() -> None:
    """Replay under each setting, print a line for each, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--reductions", default="2,3,4", help="of so many trials one goes on (2,3,4)")
    parser.add_argument("--first-rungs", default="1", help="epochs after which trials are first judged (1)")
    parser.add_argument("--slots", type=int, default=1, help="trials at the same time (1)")
    parser.add_argument("--orders", type=int, default=ORDERS, help="orders of the trials that are drawn (1000)")
    wanted = parser.parse_args()
    study, plan = read_journal(wanted.study), plan_of(load_tuning(str(wanted.study / "study.yaml")), wanted.slots)
    interval = interval_of_best(wanted.study, study)
    replays = []
    for first_rung in map(int, wanted.first_rungs.split(",")):
        for reduction in map(int, wanted.reductions.split(",")):
            asked = {"scheduler": "asha", "first_rung": first_rung, "reduction": reduction}
            one = replace(plan, tune=plan.tune.model_copy(update=asked))
            replays.append(replay(study, one, wanted.orders, interval=interval))
            print(line(replays[-1]), flush=True)
    wanted.json.write_text(json.dumps([each.as_json() for each in replays], indent=1) + "\n", encoding="utf-8")
    draw_replays(replays, wanted.figure)


def line(told: Replayed) -> str:
    """What a replay came to, for README."""
    own, share = told.own, told.share
    within = ""
    if told.interval and told.within is not None:
        low, high = (100 * bound for bound in told.interval)
        within = f" [{low:.2f}, {high:.2f}], within which {100 * told.within:.0f} % of the orders come"
    return (
        f"1 in {told.reduction} goes on, from epoch {told.first_rung}: {100 * own.share:.0f} % of the epochs and "
        f"{100 * own.dsc:.2f} % DSC in the study's own order, in {len(told.orders)} others {100 * share.median:.0f} % "
        f"({100 * share.low:.0f} to {100 * share.high:.0f}) and {100 * (told.full_dsc - told.regret.median):.2f} % "
        f"({100 * (told.full_dsc - told.regret.high):.2f} to {100 * (told.full_dsc - told.regret.low):.2f}); "
        f"the full search of {told.trials} trials: {100 * told.full_dsc:.2f} %{within}"
    )


if __name__ == "__main__":
    main()
