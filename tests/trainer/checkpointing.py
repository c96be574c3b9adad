"""Run by each rank of a job: engines are saved, loaded and taken further; rank 0 prints what came of it as JSON."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from training import SMALL

from data_pipeline import Fault
from trainer.checkpoint import Checkpoints, Progress
from trainer.checkpoint_files import sha256_of
from trainer.checkpoint_state import tensors_of
from trainer.config import Config, load_config
from trainer.engines import Engines, start_engines
from trainer.loop import iterate, settle
from trainer.processes import World, end_process, joined
from trainer.step import MicroBatch


class Run:
    """Engines of one configuration and their checkpoints in a folder."""

    def __init__(self, folder: Path, world: World, *changes: str) -> None:
        self.config: Config = load_config("quick", [*SMALL, "network.norm=group", *changes])
        self.engines: Engines = start_engines(self.config, world.size, world.device)
        self.world = world
        self.checkpoints = Checkpoints(folder, self.config.checkpoints, world, print)
        self.progress = Progress()

    def load(self) -> "Run":
        self.progress = self.checkpoints.load(self.engines, lambda: settle(self.engines, self.config, self.world))
        return self

    def iterate(self, times: int = 1, value: float = 1.0) -> "Run":
        """So many iterations on scans that follow from the step, times a value."""
        for _ in range(times):
            chance = torch.Generator().manual_seed(self.progress.step * self.world.size + self.world.rank)
            image = value * torch.rand(self.config.training.batch // self.world.size, 1, 112, 112, generator=chance)
            iterate(self.engines, [MicroBatch(image, (image > 0.6).float())], self.config, self.progress.step)
            self.progress = replace(self.progress, step=self.progress.step + 1)
        return self

    def save(self) -> "Run":
        self.checkpoints.save(self.engines, self.progress, self.config, "digest")
        return self

    def holds(self) -> dict[str, torch.Tensor]:
        return {f"{file}/{name}": value.clone() for file, name, value in tensors_of(self.engines)}


def same(one: Run, other: Run) -> bool:
    ours, theirs = one.holds(), other.holds()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def an_average(folder: Path, world: World) -> dict[str, object]:
    run = Run(folder, world, "training.ema=0.9").iterate(3).save()
    run.checkpoints.require(3)
    files = {path.name: load_file(path) for path in (folder / "step-00000003").glob("generator*")}
    average = dict(run.engines.average.named_parameters()) if run.engines.average else {}
    kept = files["generator.safetensors"]
    again = Run(folder, world, "training.ema=0.9").load()
    return {
        "is what is used": all(torch.equal(kept[name], value) for name, value in average.items()),
        "differs from the live": not all(
            torch.equal(kept[name], value) for name, value in files["generator.live.safetensors"].items()
        ),
        "goes on alike": same(run.iterate(2), again.iterate(2)),
    }


def no_adversary(folder: Path, world: World) -> dict[str, object]:
    run = Run(folder, world, "objective.beta=[0,0,0,0]").iterate(2).save()
    run.checkpoints.require(2)
    again = Run(folder, world, "objective.beta=[0,0,0,0]").load()
    files = sorted(path.name for path in (folder / "step-00000002").iterdir())
    return {"files": files, "goes on alike": same(run.iterate(), again.iterate())}


def skipped_steps(folder: Path, world: World) -> dict[str, object]:
    """Iterations that Adam does not take count as steps of the run, and not as Adam's."""
    run = Run(folder, world).iterate(1).iterate(2, value=float("nan")).iterate(1).save()
    run.checkpoints.require(4)
    state = json.loads((folder / "step-00000004" / "state.json").read_text())
    again = Run(folder, world).load()
    return {
        "Adam": state["adam_steps"],
        "step": again.progress.step,
        "goes on alike": same(run.iterate(), again.iterate()),
    }


def what_changes_while_it_is_written(folder: Path, world: World) -> dict[str, object]:
    run = Run(folder, world).iterate().save()
    with torch.no_grad():
        for parameter in run.engines.generator.module.parameters():
            parameter.zero_()
    run.checkpoints.require(1)
    kept = load_file(folder / "step-00000001" / "generator.safetensors")
    return {"any kept": any(bool(value.any()) for value in kept.values())}


def shared_out(folder: Path, world: World) -> dict[str, object]:
    """ZeRO stage 3, by two ranks."""
    run = Run(folder, world, "training.generator_zero=3").iterate(2).save()
    run.checkpoints.require(2)
    checkpoint = folder / "step-00000002"
    used = dict(run.engines.network_to_use().named_parameters())
    kept = load_file(checkpoint / "generator.safetensors")
    again = Run(folder, world, "training.generator_zero=3").load()
    told: dict[str, object] = {
        "can be used": kept.keys() == used.keys() and all(torch.equal(kept[name], used[name]) for name in used),
        "goes on alike": same(run.iterate(2), again.iterate(2)),
        "Adam": [int(state["step"]) for state in again.engines.generator.optimizer.state.values()],
        "scripts": [path.name for path in checkpoint.rglob("*.py")],
    }
    told["to stage 2"] = refusal(Run(folder, world, "training.generator_zero=2"))
    told["a pickle"] = refusal_of_a_pickle(checkpoint, world)
    return told


def refusal(run: Run) -> str:
    try:
        run.load()
    except Fault as refused:
        return f"{type(refused).__name__}: {refused}"
    return "none"


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


def refusal_of_a_pickle(checkpoint: Path, world: World) -> dict[str, object]:
    """What becomes of a checkpoint with a file that would execute something, made sound by its manifest."""
    mark = checkpoint.parent / "executed"
    if world.leads:
        for path in (checkpoint / "generator.zero3").glob("*_optim_states.pt"):
            path.write_bytes(pickle.dumps(_Attack(mark), protocol=2))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["sha256"] = {name: sha256_of(checkpoint / name) for name in manifest["sha256"]}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    world.tell(None)
    said = refusal(Run(checkpoint.parent, world, "training.generator_zero=3"))
    return {"said": said, "executed": mark.exists()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with joined(1) as world:
        if world.size == 1:
            parts = (an_average, no_adversary, skipped_steps, what_changes_while_it_is_written)
            told = {part.__name__: part(folder / part.__name__, world) for part in parts}
        else:
            told = {"shared_out": shared_out(folder, world)}
    if world.leads:
        print(json.dumps(told))
    end_process(0)
