"""From a trial's values to what its trainings are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import Dataset, plan_epoch
from trainer.config import Config
from trainer.feasible import check, dataset_of, learnt_folds
from tuning.settings import Training, Tuning, legs, trainings, validated_every
from tuning.space import with_values
from tuning.training import Order


@dataclass(frozen=True)
class Desk:
    """What all trials of a study have in common."""

    tuning: Tuning
    dataset: Dataset
    unseen: tuple[int, ...]
    """Folds that no trial learns from or is judged by."""

    @property
    def output(self) -> Path:
        """The study's folder."""
        return Path(self.tuning.config.output)

    def folder(self, number: int, generation: int = 1) -> Path:
        """Of a trial's trainings: of the first generation, or of one that went on from another trial's weights."""
        own = self.output / "trials" / f"{number:04d}"
        return own if generation == 1 else own / f"generation-{generation:02d}"

    def config(self, number: int, values: Mapping[str, Any], training: Training, generation: int = 1) -> Config:
        """What one training of a trial is told. The study, not the training, writes down what it comes to."""
        folder = self.folder(number, generation) / training.name
        own = folder.relative_to(self.output)
        mirror = self.tuning.config.checkpoints.mirror
        return with_values(self.tuning.config, values).replace(
            output=str(folder),
            seed=training.seed,
            data__fold=training.fold,
            data__unseen=list(self.unseen),
            validation__every_epochs=validated_every(self.tuning.tune, self.tuning.config),
            checkpoints__keep=2 if self.tuning.tune.scheduler == "population" else 1,  # until one is put aside
            checkpoints__mirror=mirror and f"{mirror.rstrip('/')}/{own}",
            tracking__experiment="",
        )

    def orders(self, number: int, values: Mapping[str, Any], generation: int = 1) -> list[Order]:
        """A trial's trainings, in the order in which they are taken."""
        return [
            self.order(self.config(number, values, training, generation), training.name)
            for training in trainings(self.tuning.tune, self.tuning.config)
        ]

    def order(self, config: Config, name: str) -> Order:
        """A training as it is carried out."""
        own = config.data.weights != self.tuning.config.data.weights  # what a scan counts may vary from trial to trial
        dataset = dataset_of(config) if own else self.dataset
        learnt_from = learnt_folds(config, dataset)
        batches = plan_epoch(dataset.index, learnt_from, config.seed, 0, config.training.batch).batches
        return Order(name, config.model_dump(mode="json"), config.training.epochs, batches)

    def legs(self) -> list[tuple[int, int]]:
        """Up to which epoch how many trainings of a trial are taken before any goes further."""
        tune, config = self.tuning.tune, self.tuning.config
        return legs(tune, config.training.epochs, len(trainings(tune, config)))

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise WrongCall for values with which a training cannot be."""
        for training in trainings(self.tuning.tune, self.tuning.config):
            size = self.tuning.tune.nodes * self.tuning.tune.processes
            check(self.config(0, values, training), self.dataset, size)
