"""How fast is the population engine, beside a plain loop that trains one network as the paper's authors do?

    python tests/benchmarks/cmsp_engine.py --threads 2
    python tests/benchmarks/cmsp_engine.py --device cuda --seeds 40

Both run in turns in one process. The plain loop works as arXiv:2505.15811's: torch modules, a fresh batch for each code, an
evaluation of every code before every update, one seed at a time. Both must learn the composite at the small shapes first.
"""

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainables.cmsp.networks import Shape, join
from trainables.cmsp.population import ADAM_EPS, Population
from trainables.cmsp.task import Batches, Code, Task
from trainables.cmsp.update_loop import UpdateLoop
from trainables.randomness import generator, stream_key
from trainables.relu_networks import initial_network

LEARNED_BITS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A mixture of the composite and all its atoms, and the shape that learns it."""

    task: Task
    width: int
    samples_per_code: int
    num_seeds: int

    @property
    def codes(self) -> list[Code]:
        atoms = range(self.task.num_atoms)
        return [tuple(atoms), *[(atom,) for atom in atoms]]

    @property
    def samples(self) -> int:
        return len(self.codes) * self.samples_per_code

    @property
    def shape(self) -> Shape:
        return Shape.of_depth(num_inputs=self.task.num_inputs, depth=3, width=self.width)

    @property
    def flops_per_update(self) -> int:
        """Of the matrix products of one network's training, multiplications and additions: no evaluation, no padding."""
        (first, *others) = (fan_in * fan_out for fan_in, fan_out in self.shape.layers)
        return 2 * self.samples * (2 * first + 3 * sum(others))

    def __str__(self) -> str:
        task = self.task
        return f"n={task.num_task_bits} m={task.num_atoms} k={task.bits_per_atom}, width {self.width}, {self.samples} samples"


class PlainLoop:
    """One network, one update at a time.

    Args:
        evaluates: before every update.
    """

    def __init__(self, problem: Problem, device: torch.device, *, evaluates: bool = True) -> None:
        self.problem, self.device, self.evaluates = problem, device, evaluates
        width, inputs = problem.width, problem.task.num_inputs
        torch.manual_seed(0)
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        layers = [linear(inputs, width), relu(), linear(width, width), relu(), linear(width, 2)]
        self.network = torch.nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, eps=ADAM_EPS)

    def batch(self, code: Code) -> tuple[Tensor, Tensor]:
        task, count = self.problem.task, self.problem.samples_per_code
        x_BI = torch.zeros(count, task.num_inputs, device=self.device)
        x_BI[:, task.num_atoms :] = torch.randint(0, 2, (count, task.num_task_bits), dtype=torch.float32, device=self.device)
        x_BI[:, list(code)] = 1.0
        positions = [task.num_atoms + position for position in task.positions(code)]
        return x_BI, x_BI[:, positions].sum(1).long() % 2

    def evaluate(self) -> list[float]:
        with torch.no_grad():
            batches = (self.batch(code) for code in self.problem.codes)
            return [torch.nn.functional.cross_entropy(self.network(x_BI), y_B).item() for x_BI, y_B in batches]

    def run(self, num_updates: int) -> None:
        for _ in range(num_updates):
            if self.evaluates:
                self.evaluate()
            batches = [self.batch(code) for code in self.problem.codes]
            x_BI, y_B = (torch.cat(parts) for parts in zip(*batches, strict=True))
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.network(x_BI), y_B)
            loss.backward()
            self.optimizer.step()
            loss.item()

    def composite_bits(self) -> list[float]:
        return [self.evaluate()[0] / math.log(2)]


class Engine:
    """Many networks in one batched program, evaluated every 50 updates."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem = problem
        seeds = range(problem.num_seeds)
        networks = [initial_network(problem.shape.layers, generator(seed, "weights")) for seed in seeds]
        self.population = Population(problem.shape, join(problem.shape, networks).to(device), [1e-3] * len(seeds))
        counts = dict.fromkeys(problem.codes, problem.samples_per_code)
        keys = [torch.tensor([stream_key(seed, purpose) for seed in seeds], device=device) for purpose in ("train", "test")]
        self.training, self.evaluation = (Batches(problem.task, counts, key_P) for key_P in keys)
        self.loop = UpdateLoop(self.update, device=device)
        self.done = 0

    def update(self, index: Tensor) -> None:
        self.population.update(*self.training.draw(index))

    def run(self, num_updates: int) -> None:
        stop = self.done + num_updates
        while self.done < stop:
            start, self.done = self.done, min(self.done + 50 - self.done % 50, stop)
            self.loop.run(start, self.done)
            if self.done % 50 == 0:
                self.composite_bits()

    def composite_bits(self) -> list[float]:
        loss_PB = self.population.losses(*self.evaluation.draw(self.done))
        return (loss_PB[:, : self.problem.samples_per_code].mean(1) / math.log(2)).tolist()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(device: torch.device) -> float:
    """What large batched products reach here, per second, in float32."""
    a = torch.randn(2, 2048, 1024, device=device)
    b = torch.randn(2, 1024, 1024, device=device)
    torch.bmm(a, b)
    return 2 * 2 * 2048 * 1024**2 / statistics.median(seconds(lambda: torch.bmm(a, b), device) for _ in range(20))


def compare(problem: Problem, device: torch.device, *, num_updates: int, num_rounds: int) -> None:
    """Time both in turns, some tenths of a second each, so that all meet the same machine; updates of one network count.

    "blind" is the plain loop without its evaluations: what of the ratio is not owed to evaluating less often.
    """
    loops = {
        "plain": PlainLoop(problem, device),
        "blind": PlainLoop(problem, device, evaluates=False),
        "engine": Engine(problem, device),
    }
    times: dict[str, list[float]] = {name: [] for name in (*loops, "peak")}
    for _ in range(num_rounds):
        for name, loop in loops.items():
            loop.run(3)  # what ran before has left its data in the caches
            networks = problem.num_seeds if name == "engine" else 1
            times[name].append(seconds(partial(loop.run, num_updates), device) / num_updates / networks)
        times["peak"].append(peak_flops(device))
    peak = statistics.median(times["peak"])
    ratios = [a / b for a, b in zip(times["plain"], times["engine"], strict=True)]
    print(f"{problem}, {problem.num_seeds} seeds; {num_rounds} rounds in turns")
    for name in loops:
        median, best = statistics.median(times[name]), min(times[name])
        share = problem.flops_per_update / median / peak
        print(
            f"  {name:7s} {1 / median:8.1f} updates/s (best {1 / best:.1f})  {problem.samples / median:12,.0f} samples/s  "
            f"{share:.0%} of the peak of {peak / 1e9:,.0f} GFLOP/s"
        )
    print(f"  ratio   {statistics.median(ratios):8.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def profile(problem: Problem, device: torch.device) -> None:
    """Print where one update of the engine goes, in its parts as they are called, and in matrix products."""
    engine = Engine(problem, device)
    batch = engine.training.draw(0)
    parts: dict[str, Callable[[], object]] = {
        "update": lambda: engine.update(torch.zeros((), dtype=torch.int64, device=device)),
        "draw samples": lambda: engine.training.draw(0),
        "forward and backward": lambda: engine.population.backward(*batch),
        "Adam": engine.population.adam,
    }
    print(f"one update: {problem}, {problem.num_seeds} seeds")
    for name, run in parts.items():
        run()
        print(f"  {name:22s} {1e3 * statistics.median(seconds(run, device) for _ in range(40)):7.3f} ms")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(20):
            parts["update"]()
    products = {"aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm", "aten::addmm_"}
    spent = sum(event.self_cpu_time_total for event in recorded.key_averages() if event.key in products) / 20e3
    floor = 1e3 * problem.num_seeds * problem.flops_per_update / peak_flops(device)
    print(f"  {'matrix products':22s} {spent:7.3f} ms, in them\n  {'floor':22s} {floor:7.3f} ms, unpadded products at the peak")


def check_learning(problem: Problem, device: torch.device, *, num_updates: int) -> None:
    """Both must learn the composite.

    Raises:
        SystemExit: if one does not.
    """
    for one in (PlainLoop(problem, device), Engine(problem, device)):
        one.run(num_updates)
        bits = statistics.median(one.composite_bits())
        name = type(one).__name__
        if not bits < LEARNED_BITS:
            sys.exit(
                f"{name} must learn the composite, but its loss is {bits:.3f} bits after {num_updates} updates: no timing counts"
            )
        print(f"{name}: composite at {bits:.3f} bits after {num_updates} updates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--seeds", default=1, type=int, help="networks at the paper's shapes")
    parser.add_argument("--rounds", default=9, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    on = f"{options.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, {device}, {on}")
    small = Task(num_task_bits=32, num_atoms=3, bits_per_atom=3)
    full = Task(num_task_bits=64, num_atoms=4, bits_per_atom=4)
    check_learning(Problem(task=small, width=128, samples_per_code=200, num_seeds=8), device, num_updates=3600)
    paper = Problem(task=full, width=128, samples_per_code=2000, num_seeds=options.seeds)
    compare(paper, device, num_updates=40, num_rounds=options.rounds)
    for width in (128, 64):
        problem = Problem(task=small, width=width, samples_per_code=200, num_seeds=8)
        compare(problem, device, num_updates=100, num_rounds=options.rounds)
    for problem in (paper, Problem(task=small, width=64, samples_per_code=200, num_seeds=8)):
        profile(problem, device)


if __name__ == "__main__":
    main()
