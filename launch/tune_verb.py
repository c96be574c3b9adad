"""`sonotrain tune`."""

from __future__ import annotations

from launch.options import JsonFile
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
    with collected() as received:
        search(wanted, launching, received, say)
