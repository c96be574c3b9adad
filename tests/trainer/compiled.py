"""Run as a job of one: an iteration as it is and with compiled networks; prints how far the weights differ."""

from __future__ import annotations

import torch

from trainer.config import load_config
from trainer.engines import start_engines
from trainer.loop import iterate
from trainer.processes import end_process, joined
from trainer.step import MicroBatch


def weights(compiled: str) -> dict[str, torch.Tensor]:
    """The generator's after two iterations."""
    config = load_config(
        "quick",
        [
            f"training.compile={compiled}",
            "training.precision=fp32",
            "training.batch=2",
            "network.widths=[2, 4]",
            "network.norm=group",
            "objective.beta=[0, 0, 0, 0]",
        ],
    )
    engines = start_engines(config, 1, torch.device("cpu"))
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for step in range(2):
        iterate(engines, [MicroBatch(image, (image > 0.5).float())], config, step)
    return engines.generator.module.state_dict()


if __name__ == "__main__":
    with joined(2):
        plain, compiled = weights("false"), weights("true")
        assert plain.keys() == compiled.keys()
        print(max(float((plain[name] - compiled[name]).abs().max()) for name in plain if "num_batches" not in name))
    end_process(0)
