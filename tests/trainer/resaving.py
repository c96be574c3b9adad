"""Run by each rank of a job: load a checkpoint into engines of other ZeRO stages, and save what they hold."""

import sys
from pathlib import Path

from trainer.checkpoint import Checkpoints
from trainer.config import load_config
from trainer.engines import start_engines
from trainer.loop import settle
from trainer.processes import end_process, joined

if __name__ == "__main__":
    source, target, configuration, *stages = sys.argv[1:]
    with joined(1) as world:
        for stage in stages:
            generator, discriminators = stage
            changes = [f"training.generator_zero={generator}", f"training.discriminator_zero={discriminators}"]
            config = load_config(configuration, changes)
            engines = start_engines(config, world.size, world.device)
            before = Checkpoints(Path(source), config.checkpoints, world, print)
            progress = before.load(engines, lambda: settle(engines, config, world))  # noqa: B023
            with Checkpoints(Path(target) / stage, config.checkpoints, world, print) as after:
                after.save(engines, progress, config, "digest")
            engines.destroy()
    end_process(0)
