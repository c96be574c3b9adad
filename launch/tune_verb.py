"""`sonotrain tune`."""

from __future__ import annotations

from launch.options import JsonFile, write_json
from launch.terminal import say
from launch.train_verbs import Changes, Source


def tune(
    config: Source,
    changes: Changes = None,
    json: JsonFile = None,
) -> None:
    """Search loss weights, rates, or any keys: trials as Ray places them, judged on held-out folds (docs/tuning.md).

    Started again with the same output, it goes on. Keys that begin with tune. say what is searched and how.
    """
    from launch.cores import usable_cores
    from launch.installed import versions
    from launch.job import dying
    from launch.signals import collected
    from tuning.search import Launching, search
    from tuning.settings import load_tuning

    wanted = load_tuning(config, changes or ())
    launching = Launching(dying, versions, usable_cores().count)
    tuned = wanted.tune
    say(f"Searching {', '.join(wanted.space.dimensions)} in {tuned.trials} trials; output: {wanted.config.output}")
    with collected() as received:
        results = search(wanted, launching, received, say)
    write_json(json, results.as_json())
    say(f"Searched; the best configuration is {results.output}/best.yaml, all else in {results.output}")
