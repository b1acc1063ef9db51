"""How fast does a pruned language model recover, cut, beside a masked model of full size as the paper's authors train it?

    python tests/benchmarks/llm_recovery.py --threads 2
    python tests/benchmarks/llm_recovery.py --device cuda --sequences 64 --length 1024

Both make updates in turns in one process, on the same tokens and with the same optimizer. The masked model has its zeros put
back after every update. The authors also pad one document to each sequence: what that costs is a factor of its own, measured
on the text of the installed packages.
"""

import argparse
import dataclasses
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.llm.anatomy import neurons
from trainables.llm.base import BaseConfig, build_llama, draw_parameters
from trainables.llm.corpus import load_corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.dissection import dissect
from trainables.llm.surgery import remove
from trainables.llm.training import Trainer, Training
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept
from trainables.pruning.surgery import mask
from trainables.shared import Shared
from trainables.storage import Folder

DOCUMENTS_A_BATCH, MOST_TOKENS = 64, 1024  # the authors'
ARMS = ("masked", "cut")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Stands in for a stream of text: speed does not depend on what is said."""

    vocabulary: int
    shape: tuple[int, int]

    def batch(self, index: int) -> Tensor:
        return torch.randint(self.vocabulary, self.shape, generator=torch.Generator().manual_seed(index))


def make_trainer(arm: str, options: argparse.Namespace, sparsity: float) -> tuple[Trainer, nn.Module]:
    """A model whose neurons are chosen at random, so that all blocks keep about as many, and what trains it."""
    config = BaseConfig(
        width=options.width, num_layers=options.layers, mlp_width=4 * options.width, num_heads=options.width // 64
    )
    model = build_llama(config, options.vocabulary)
    draw_parameters(model, 0)
    anatomy = dissect(model)
    tensors = dict(model.named_parameters())
    layers = neurons(anatomy, tensors)
    keep = choose_kept(SCORES["random"](tensors, layers, [], torch.Generator().manual_seed(0)), sparsity)
    if arm == "cut":
        remove(model, anatomy, layers, keep)
    model.to(options.device)
    keep = [keep_H.to(options.device) for keep_H in keep]

    def put_zeros_back(parameters: dict[str, Tensor], _: float) -> None:
        for units, keep_H in zip(layers, keep, strict=True):
            mask(parameters, units, keep_H)

    training = Training(updates=10**6, batch_size=options.sequences, length=options.length, warmup=0)
    tokens = Tokens(options.vocabulary, (options.sequences, options.length + 1))
    return Trainer(model, tokens, training, after_update=put_zeros_back if arm == "masked" else None), model


def time_updates(trainer: Trainer, num_updates: int, device: str) -> float:
    """Seconds an update."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    trainer.run(num_updates)
    synchronize()
    return (time.perf_counter() - start) / num_updates


def flops_a_token(model: nn.Module, options: argparse.Namespace) -> float:
    """6 a parameter that multiplies, and attention's own products: forward and backward, multiplications and additions."""
    products = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    return 6.0 * products + 6.0 * options.layers * options.length * options.width


def measure(options: argparse.Namespace, sparsity: float) -> None:
    trainers, models = zip(*(make_trainer(arm, options, sparsity) for arm in ARMS), strict=True)
    for trainer in trainers:
        time_updates(trainer, 1, options.device)
    rounds = [[time_updates(trainer, options.updates, options.device) for trainer in trainers] for _ in range(options.rounds)]
    tokens = options.sequences * options.length
    masked, cut = (tokens / statistics.median(times) for times in zip(*rounds, strict=True))
    ratios = sorted(one / other for one, other in rounds)
    possible = flops_a_token(models[0], options) / flops_a_token(models[1], options)
    ratio = statistics.median(ratios)
    print(
        f"sparsity {sparsity}: masked {masked:.0f} tokens/s, cut {cut:.0f} tokens/s, ratio {ratio:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {ratio / possible:.0%} of the FLOPs ratio {possible:.2f}",
        flush=True,
    )


def peak_megabytes(arm: str, options: argparse.Namespace, sparsity: float) -> float:
    """Of a process that makes two updates of one arm."""
    command = [sys.executable, __file__, "--peak-of", arm, "--sparsities", str(sparsity), "--device", options.device]
    for name in ("threads", "width", "layers", "vocabulary", "sequences", "length"):
        command += [f"--{name}", str(getattr(options, name))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(options: argparse.Namespace) -> None:
    trainer, _ = make_trainer(options.peak_of, options, options.sparsities[0])
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.run(2)
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building and cutting
    trainer.run(2)
    status = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert status is not None
    print(int(status[1]) / 2**10)


def padded_share() -> float:
    """Share of padding in batches of one document a sequence, cut off and padded as the authors do; of Python, in its order."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = load_corpus(Shared(Folder(folder)), CorpusConfig())
    starts = torch.cat([corpus.starts("python", "training"), torch.tensor([len(corpus.tokens("python", "training"))])])
    lengths = starts.diff().clamp(max=MOST_TOKENS)
    batches = [part for part in torch.split(lengths, DOCUMENTS_A_BATCH) if len(part) == DOCUMENTS_A_BATCH]
    return 1 - sum(int(part.sum()) for part in batches) / sum(len(part) * int(part.max()) for part in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    for name, default in (("width", 512), ("layers", 8), ("vocabulary", 4096), ("sequences", 4), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9], help="shares of the neurons that go")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2, help="of each arm in a round")
    parser.add_argument("--peak-of", choices=ARMS, help="print the peak memory of one arm and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print_peak(options)
        return
    print(f"Llama of width {options.width}, {options.layers} blocks, vocabulary {options.vocabulary}, {options.device}")
    for sparsity in options.sparsities:
        measure(options, sparsity)
        peaks = ", ".join(f"{arm} {peak_megabytes(arm, options, sparsity):.0f} MiB" for arm in ARMS)
        print(f"  peak memory: {peaks}", flush=True)
    share = padded_share()
    print(f"padding, in a loop of one document a sequence: {share:.0%} of the tokens, a factor of {1 / (1 - share):.2f}")


if __name__ == "__main__":
    main()
