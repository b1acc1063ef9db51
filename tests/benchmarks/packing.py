"""How many more small CMSP trials a second does a pack train than two warm workers?

    python tests/benchmarks/packing.py [--rounds 3] [--json]

16 trials of one shape, of which only learning rates and seeds differ, 500 updates each: as one pack in a process of one thread
or of two, as two packs of 8 in two processes of one thread, and one after another in two warm processes of one thread. Starting
processes and imports are not counted. Medians of rounds in turns.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from typing import Any

NUM_TRIALS, NUM_UPDATES = 16, 500
SHAPES = [(16, 16), (16, 50), (32, 16), (32, 50), (32, 200), (64, 50), (64, 200)]
"""Width, and samples of a code in an update."""


def configs(width: int, samples_per_code: int) -> list[dict[str, Any]]:
    """What the trials train: a composite of two atoms of two bits and both atoms."""
    samples = 3 * samples_per_code
    fixed = {
        "num_task_bits": 12, "num_atoms": 2, "bits_per_atom": 2, "composite_size": 2, "related_atoms": 2,
        "composite_share": 1 / 3, "width": width, "samples_per_update": samples, "sample_budget": samples * NUM_UPDATES,
        "num_seeds": 1, "samples_per_evaluation": 100, "updates_per_step": 100, "target_loss_bits": 1e-9,
    }  # fmt: skip
    return [fixed | {"seed": 100 * i, "learning_rate": 1e-3 * 1.1**i} for i in range(NUM_TRIALS)]


def worker(pipe: Any, num_threads: int) -> None:
    """A warm process: trains what it is sent, packed or one after another, and answers when it is done."""
    import torch

    from trainables.cmsp.curriculum import Curriculum

    torch.set_num_threads(num_threads)
    while (asked := pipe.recv()) is not None:
        texts, is_packed = asked
        made = [Curriculum(Curriculum.Config(**config), device=torch.device("cpu")) for config in texts]
        if is_packed:
            pack = Curriculum.pack(made)
            while pack.members:
                pack.step()
        else:
            for experiment in made:
                while experiment.progress < 1.0:
                    experiment.step()
        pipe.send([experiment.progress for experiment in made])


class Workers:
    """Warm processes of one thread or more each."""

    def __init__(self, num: int, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(num)]
        self._pipes = [ours for ours, _ in pairs]
        for _, theirs in pairs:
            context.Process(target=worker, args=(theirs, num_threads), daemon=True).start()
        self.seconds([[config] for config in configs(16, 16)[:num]], is_packed=False)

    def seconds(self, parts: list[list[dict[str, Any]]], *, is_packed: bool) -> float:
        """How long it takes them to train a part each."""
        start = time.perf_counter()
        for pipe, part in zip(self._pipes, parts, strict=True):
            pipe.send((part, is_packed))
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - start


def measure(rounds: int) -> list[dict[str, Any]]:
    """Trials a second of every way, for every shape."""
    one, both, two = Workers(1, 1), Workers(1, 2), Workers(2, 1)
    found = []
    for width, samples in SHAPES:
        trials = configs(width, samples)
        halves = [trials[::2], trials[1::2]]
        ways = {
            "apart": lambda halves=halves: two.seconds(halves, is_packed=False),
            "pack": lambda trials=trials: one.seconds([trials], is_packed=True),
            "pack_two_threads": lambda trials=trials: both.seconds([trials], is_packed=True),
            "two_packs": lambda halves=halves: two.seconds(halves, is_packed=True),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                taken[way].append(run())
        rates = {way: NUM_TRIALS / statistics.median(seconds) for way, seconds in taken.items()}
        ratios = {way: rate / rates["apart"] for way, rate in rates.items()}
        found.append({"width": width, "samples_per_code": samples, "trials_per_second": rates, "ratio": ratios})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    print("width, samples a code: trials/s apart; ratios of one pack, with two threads, of two packs")
    for row in found:
        ratio = row["ratio"]
        shown = f"{ratio['pack']:.2f}, {ratio['pack_two_threads']:.2f}, {ratio['two_packs']:.2f}"
        print(f"{row['width']:3} {row['samples_per_code']:4}: {row['trials_per_second']['apart']:6.2f}; {shown}")


if __name__ == "__main__":
    main()
