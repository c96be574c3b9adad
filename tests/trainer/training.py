"""Run by each rank of a job: one training with the `quick` preset, made small, and the changes given."""

import sys

from trainer.config import load_config
from trainer.loop import train
from trainer.processes import end_process

SMALL = [
    "data.size=[112, 112]",
    "network.widths=[4, 4, 8, 8, 8]",
    "discriminators.widths=[4, 4, 4, 4]",
    "training.epochs=2",
    "training.batch=4",
    "training.precision=fp32",
    "training.timeout_minutes=1",
    "checkpoints.every_steps=2",
]

if __name__ == "__main__":
    train(load_config("quick", [*SMALL, *sys.argv[1:]]))
    end_process(0)
