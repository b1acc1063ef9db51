"""Six ways to a small network that knows some classes only, compared fairly (arXiv:2505.15811, Fig 4).

A trial takes one way: the group lasso, pruning once and recovering (ranked by attribution, by norms or at random),
distillation, or training from scratch. Its networks train on the kept classes until the validation accuracy is enough. What
counts is how many datapoints that took, and how many neurons are left.
"""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.charts import Chart
from trainables.clock import evaluating
from trainables.experiment import Account, Candidate, DivergedError, Experiment, Removal
from trainables.laws import require
from trainables.mnist.evaluation import dataset_of, evaluate_networks, evidence_of, probe_logits, test_images
from trainables.mnist.narrowing_charts import draw_course
from trainables.mnist.narrowing_config import SCORE_OF, NarrowingConfig
from trainables.mnist.results import METRICS, Result, measure, summarize
from trainables.mnist.teacher import teacher_recipe
from trainables.mnist.training import Training
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept
from trainables.pruning.surgery import remove
from trainables.pruning.units import Tensors
from trainables.randomness import generator
from trainables.relu_networks import CrossEntropy, by_seed, from_seeds, hidden_neurons, initial_network, logits
from trainables.shared import Recipe


class Narrowing(Experiment):
    """Which way to a narrow image classifier is cheapest? A trial is one way to one size, over several seeds.

    A network is done when its validation accuracy on the kept classes reaches the target at its final size; the trial is
    done when all are, or when the budget of datapoints is spent. A lasso run passes many sizes: those at which every
    network had the target accuracy are its candidates, and then what it ends with.

    Args:
        given: what `needs` asks for.

    Source: arXiv:2505.15811, Fig 4 (mnist/). Differs: validation images decide when to stop, test images only measure; all
    ways have the same optimizer, check interval and budget; attribution's scores are those that were meant, and the
    images that they read are counted; neurons are exact groups, and a pruned one is gone with its bias.
    """

    Config: ClassVar[Any] = NarrowingConfig
    METRICS = METRICS
    libraries = ("scikit-learn",)

    def __init__(
        self, config: NarrowingConfig, *, device: torch.device, given: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> None:
        self.config, self.device = config, device
        data = dataset_of(config).to(device)
        kept = config.kept_classes
        self._data = data
        self._train, self._validation = (images.of_classes(kept) for images in (data.train, data.validation))
        self._kept_test, self._other_test = test_images(config, data)
        self._teachers = [_to(given[f"teacher{seed}"], device) for seed in config.seeds] if given else []
        self._begun_with: dict[int, list[Tensor]] = {}  # of each seed that is pruned at once, what is kept of its teacher
        networks = [self._first_network(place) for place in range(config.num_seeds)]
        self._begun_sizes = [sum(tensor.numel() for tensor in network.values()) for network in networks]
        self._training = Training(config, self._train, networks, self._teachers)
        self._num_checks = 0
        self._levels: list[list[Result | None]] = [[None] * config.num_seeds for _ in config.levels]
        self._is_offered = [False] * len(config.levels)
        self._num_offered = 0  # before the last step
        self._found: list[Candidate] = []  # in the last step
        self._history: list[list[float]] = []  # of every check of every network: place, datapoints, neurons, accuracy

    @classmethod
    def needs(cls, config: NarrowingConfig) -> dict[str, Recipe]:
        """The teacher of each seed, except from scratch."""
        data = dataset_of(config)
        if not config.needs_teacher:
            return {}
        return {f"teacher{seed}": teacher_recipe(config.teacher, data, seed) for seed in config.seeds}

    def _first_network(self, place: int) -> Tensors:
        """What the way begins with: the teacher, the teacher pruned, or a small network of its own."""
        config, seed = self.config, self.config.seeds[place]
        if config.method in ("from_scratch", "distillation"):
            sizes = [self._data.num_pixels, *config.narrow_widths, self._data.num_classes]
            network = initial_network(list(pairwise(sizes)), generator(seed, "weights"))
            return _to(network, self.device)
        teacher = self._teachers[place]
        if config.method == "group_lasso":
            return teacher
        neurons = hidden_neurons(teacher)
        losses = [self._score_loss(seed)] if config.score_cost else []
        scores = SCORES[SCORE_OF[config.method]](teacher, neurons, losses, generator(seed, "random scores"))
        keep = self._choose_kept(scores)
        self._begun_with[place] = [keep_H.cpu() for keep_H in keep]
        return remove(teacher, neurons, keep)

    def _choose_kept(self, scores: list[Tensor]) -> list[Tensor]:
        """Exactly as many neurons as the config says: ranked all together, or each layer its share."""
        config = self.config
        if config.ranking == "global":
            return choose_kept(scores, 1 - config.neurons / sum(config.teacher.widths))
        shares = [narrow / width for narrow, width in zip(config.narrow_widths, config.teacher.widths, strict=True)]
        return [choose_kept([score_H], 1 - share)[0] for score_H, share in zip(scores, shares, strict=True)]

    def _score_loss(self, seed: int) -> CrossEntropy:
        order = torch.randperm(len(self._train), generator=generator(seed, "scores")).to(self.device)
        place_B = order[: self.config.score_samples]
        return CrossEntropy(self._train.batch(place_B), self._train.label_N[place_B])

    def step(self) -> dict[str, float]:
        self._num_offered += len(self._found)
        self._found = []
        for _ in range(self.config.checks_per_step):
            if self.progress < 1.0:
                self._check()
        if self.progress == 1.0:
            self._offer_last()
        return summarize(self.results())

    def _check(self) -> None:
        """Train for one interval, then see how far each network is."""
        config, training = self.config, self._training
        training.run(config.samples_per_check // config.batch_size)
        self._num_checks += 1
        with evaluating():
            accuracies = self._validate()
        for place, neurons, accuracy in zip(training.places, training.population.num_alive(), accuracies, strict=True):
            self._note(place, neurons, accuracy)
        self._offer()
        staying = [place for place in training.places if self._levels[-1][place] is None]
        if staying:
            training.keep(staying)

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Validation accuracy on the kept classes of every network in training."""
        tensors, images = self._training.population.tensors, self._validation
        logit_PNO = logits(tensors, images.batch(torch.arange(len(images), device=self.device)))
        if not bool(logit_PNO.isfinite().all()):
            raise DivergedError(f"outputs must be finite, but are not; lower learning_rate = {self.config.learning_rate}")
        right_PN = logit_PNO.argmax(-1) == images.label_N
        return [float(share) for share in right_PN.double().mean(1)]

    def _note(self, place: int, neurons: int, accuracy: float) -> None:
        """Take a network down where it is the first of its seed at a size with the target accuracy."""
        self._history.append([place, self._datapoints, neurons, accuracy])
        reached = accuracy >= self.config.target_accuracy
        open_levels = [
            level
            for level, most in enumerate(self.config.levels)
            if reached and neurons <= most and self._levels[level][place] is None
        ]
        if open_levels:
            result = self._measure(place, accuracy, reached=True)
            for level in open_levels:
                self._levels[level][place] = result

    @property
    def _datapoints(self) -> int:
        """Images that every network in training has cost so far."""
        return self.config.score_cost + self._num_checks * self.config.samples_per_check

    def _measure(self, place: int, validation_accuracy: float, *, reached: bool) -> Result:
        with evaluating():
            return measure(
                self._training.network(place),
                self._kept_test,
                self._other_test,
                datapoints=self._datapoints,
                validation_accuracy=validation_accuracy,
                reached=reached,
                kept_neurons=self._training.kept(place),
            )

    def _offer(self) -> None:
        """Make candidates of the sizes that every network has passed by now; of sizes passed at once, the smallest."""
        complete: dict[tuple[int, ...], tuple[int, list[Result]]] = {}  # with the smallest of the sizes
        for level, results in enumerate(self._levels):
            passed = [result for result in results if result is not None]
            if self.config.method == "group_lasso" and len(passed) == len(results) and not self._is_offered[level]:
                self._is_offered[level] = True
                complete[tuple(result.datapoints for result in passed)] = self.config.levels[level], passed
                if level < len(self._levels) - 1:  # the files have them now
                    self._levels[level] = list[Result | None](dataclasses.replace(result, tensors={}) for result in passed)
        for most_neurons, passed in complete.values():
            self._add_candidate(passed, most_neurons)

    def _add_candidate(self, results: list[Result], most_neurons: int) -> None:
        tensors, number = by_seed([result.tensors for result in results]), self._num_offered + len(self._found)
        account = self._account(results, most_neurons)
        self._found.append(Candidate(number=number, metrics=summarize(results), tensors=tensors, account=account))

    def _offer_last(self) -> None:
        """Offer what a lasso run with candidates ends with, though not all its networks are done: other trials do so, too."""
        if self._num_offered + len(self._found) > 0 and not self._is_offered[-1]:
            self._is_offered[-1] = True
            self._add_candidate(self.results(), self.config.neurons)

    def results(self) -> list[Result]:
        """Of each seed, once a step is made: its network at its final size, or as it is now."""
        seen = {int(place): accuracy for place, _, _, accuracy in self._history}
        return [result or self._measure(place, seen[place], reached=False) for place, result in enumerate(self._levels[-1])]

    def candidates(self) -> list[Candidate]:
        """Sizes that every network of a lasso run passed with the target accuracy, and what such a run ends with."""
        return list(self._found)

    @property
    def progress(self) -> float:
        if all(self._levels[-1]) or self._num_checks >= self.config.num_checks:
            return 1.0
        return self._num_checks / self.config.num_checks

    def flops(self) -> float:
        """Six a parameter and training image of every network, at the size that it began with: a lasso's dead neurons compute.

        What scores read, a teacher's answers and Adam's own are not counted.
        """
        parameters = sum(self._begun_sizes[int(place)] for place, *_ in self._history)  # once a check
        return 6.0 * parameters * self.config.samples_per_check

    def state_dict(self) -> dict[str, Any]:
        return {
            "training": self._training.state_dict(),
            "num_checks": self._num_checks,
            "levels": [[result and result.state_dict() for result in results] for results in self._levels],
            "is_offered": list(self._is_offered),
            "num_offered": self._num_offered + len(self._found),
            "history": [list(row) for row in self._history],
            "data": self._data.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        law, ours = "a trial must go on with the images that it began with", self._data.fingerprint
        require(state["data"] == ours, law, f"{ours} for {state['data']}", "put the files back, or launch another study")
        self._training.load_state_dict(state["training"])
        self._num_checks, self._num_offered = state["num_checks"], state["num_offered"]
        self._levels = [[fields and self._result(fields) for fields in results] for results in state["levels"]]
        self._is_offered = list(state["is_offered"])
        self._history = [list(row) for row in state["history"]]
        self._found = []

    def _result(self, fields: Mapping[str, Any]) -> Result:
        return Result(**{**fields, "tensors": _to(fields["tensors"], self.device)})

    def model_tensors(self) -> dict[str, Tensor]:
        """Every seed's network: at its final size with the target accuracy, or as it is now.

        Returns:
            for seed and layer 0, 1, ...: `seed0.layer0.weight` of shape (outputs, inputs) and `seed0.layer0.bias`.
        """
        final = enumerate(self._levels[-1])
        return by_seed([result.tensors if result else self._training.network(place) for place, result in final])

    @classmethod
    def rebuild(
        cls, config: NarrowingConfig, tensors: Mapping[str, Tensor], files: Mapping[str, bytes]
    ) -> list[torch.nn.Sequential]:
        """One torch.nn.Sequential a seed, as small as it was pruned: pixels in [0, 1] in, a logit for every class out."""
        return from_seeds(tensors)

    def account(self) -> Account:
        """Which images it read, and which neurons of the teachers are left."""
        return self._account(self.results(), self.config.neurons)

    def _account(self, results: list[Result], most_neurons: int) -> Account:
        """Of one result a seed, of which those count as reached that have no more neurons than that."""
        evidence = evidence_of(self._data, most_neurons)
        return Account(evidence=evidence, read={"data": self._data.fingerprint}, removal=self._removal(results))

    def _removal(self, results: list[Result]) -> Removal | None:
        """What is left of the teachers; None where networks began small."""
        config = self.config
        if config.method in ("from_scratch", "distillation"):
            return None
        kept = {}
        for place, result in enumerate(results):
            for layer, (index_H, width) in enumerate(zip(result.kept_neurons, config.teacher.widths, strict=False)):
                begun_H = self._begun_with[place][layer].nonzero()[:, 0] if place in self._begun_with else torch.arange(width)
                kept[f"seed{place}.layer{layer}"] = torch.isin(torch.arange(width), begun_H[index_H])
        return Removal(score=SCORE_OF.get(config.method, config.method), kept=kept)

    @classmethod
    def probe(cls, config: NarrowingConfig, model: list[torch.nn.Sequential]) -> dict[str, Tensor]:
        """Logits of every network, of images of noise."""
        return probe_logits(model)

    @classmethod
    def evaluate(
        cls,
        config: NarrowingConfig,
        model: list[torch.nn.Sequential],
        evidence: Mapping[str, Tensor],
        *,
        device: torch.device,
    ) -> dict[str, float]:
        """All but the datapoints, on the images of the config, which must be those that it was made with."""
        return evaluate_networks(config, model, evidence, device)

    def charts(self) -> list[Chart]:
        """Validation accuracy over datapoints and over neurons (Fig 4, right)."""
        return [draw_course(self.config, self._history)]


def _to(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
