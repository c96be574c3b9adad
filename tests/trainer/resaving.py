"""Run by each rank of a job: load a checkpoint into engines of another ZeRO stage, and save what they hold."""

import sys
from pathlib import Path

from trainer.checkpoint import load, save
from trainer.config import load_config
from trainer.engines import start_engines
from trainer.loop import settle
from trainer.processes import end_process, joined

if __name__ == "__main__":
    source, target, configuration, *changes = sys.argv[1:]
    config = load_config(configuration, changes)
    with joined(1) as world:
        engines = start_engines(config, world.size, world.device)
        progress = load(Path(source), engines, world, lambda: settle(engines, config, world))
        save(Path(target), engines, progress, config, "digest", world)
    end_process(0)
