"""Training the networks of one curriculum trial, or of several of one shape, as one population.

Axes: P networks that still train, trial by trial; B samples, C codes.
"""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.clock import evaluating
from trainables.cmsp.curriculum_config import CurriculumConfig
from trainables.cmsp.curriculum_record import Record
from trainables.cmsp.population import Population
from trainables.cmsp.task import Batches
from trainables.cmsp.update_loop import UpdateLoop
from trainables.experiment import DivergedError
from trainables.laws import require
from trainables.randomness import stream_keys


class Training:
    """Trains what by the records of some trials still trains, and keeps the records up to date.

    A network that has converged leaves the population, and a trial that diverges takes all of its own along. The others do
    not notice, bit for bit on the CPU.

    Args:
        records: of trials whose configs have one `pack_key`, at the same update.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._config = records[0].config  # only what all have in common is asked of it
        self._update = records[0].update
        self._records = [record for record in records if not record.is_done]
        if self._records:
            self._population = Population.concatenate([record.population for record in self._records])
            self._bind()

    def _bind(self) -> None:
        """Make the streams and the loop of the networks that still train."""
        networks = [(record.config, seed) for record in self._records for seed in record.training_seeds]
        population, device = self._population, self._population.parameter_PF.device
        key_P = stream_keys(((config.seed + seed, "training") for config, seed in networks), device)
        training = Batches(self._config.task, [config.counts for config, _ in networks], key_P)
        self._evaluation = evaluation_batches(self._config, [config.seed + seed for config, seed in networks], device)
        self._loop = UpdateLoop(lambda index: population.update(*training.draw(index)), device=device)

    def advance(self) -> dict[Record, DivergedError]:
        """Train until the next report, or until all are done; return who diverged."""
        law, remedy = "trials that train together must be at one update", "make the steps of each by its pack alone"
        updates = {self._update, *(record.update for record in self._records)}
        require(len(updates) == 1, law, sorted(updates), remedy)
        errors: dict[Record, DivergedError] = {}
        stop = min(self._update + self._config.updates_per_step, self._config.num_updates)
        while self._update < stop and self._records:
            start, self._update = self._update, self._next_evaluation()
            self._loop.run(start, self._update)
            errors |= self._evaluate()
        for record, part in self._parts():
            record.population.become(self._population, part)
        return errors

    def _next_evaluation(self) -> int:
        every = self._config.updates_per_evaluation
        return min((self._update // every + 1) * every, self._config.num_updates)

    def _evaluate(self) -> dict[Record, DivergedError]:
        """Measure fresh losses of every network, and let those go that have converged, or diverged."""
        with evaluating():
            measured = measure(self._config, self._population, self._evaluation, self._update)
        errors, staying = {}, []
        for record, part in self._parts():
            try:
                places = record.note(self._update, measured[part], self._population.parameter_PF[part])
            except DivergedError as error:
                errors[record] = error
                continue
            staying += [part.start + place for place in places]
            if not places:
                record.population.become(self._population, slice(0))
        self._keep([record for record in self._records if record.training_seeds and record not in errors], staying)
        return errors

    def _parts(self) -> list[tuple[Record, slice]]:
        """Every trial, and where its networks are in the population."""
        parts, start = [], 0
        for record in self._records:
            stop = start + len(record.training_seeds)
            parts.append((record, slice(start, stop)))
            start = stop
        return parts

    def drop(self, gone: Record) -> None:
        """Go on without a trial."""
        places = [place for record, part in self._parts() if record is not gone for place in range(part.start, part.stop)]
        self._keep([record for record in self._records if record is not gone], places)

    def _keep(self, records: list[Record], places: list[int]) -> None:
        """Go on with some of the trials, and of all networks with those at some places."""
        self._records = records
        if places and len(places) < len(self._population.parameter_PF):
            self._population.keep(torch.tensor(places, device=self._population.parameter_PF.device))
            self._bind()


def evaluation_batches(config: CurriculumConfig, seeds: Sequence[int], device: torch.device) -> Batches:
    """What the networks of these seeds are measured on: the composite first, then its atoms."""
    codes = [config.composite, *[(atom,) for atom in config.composite]]
    key_P = stream_keys(((seed, "evaluation") for seed in seeds), device)
    return Batches(config.task, dict.fromkeys(codes, config.samples_per_evaluation), key_P)


@torch.no_grad()
def measure(config: CurriculumConfig, population: Population, evaluation: Batches, update: int) -> list[tuple[float, float]]:
    """Losses of every network after an update, in bits: the composite's, and the mean of its atoms'."""
    loss_PB: Tensor = population.losses(*evaluation.draw(update)) / math.log(2)
    loss_PC = loss_PB.view(len(evaluation.key_P), -1, config.samples_per_evaluation).mean(-1).tolist()
    return [(composite, statistics.fmean(atoms)) for composite, *atoms in loss_PC]
