"""How fast does a pruned language model recover, cut, beside a masked model of full size as the paper's authors train it?

    python tests/benchmarks/llm_recovery.py --threads 2
    python tests/benchmarks/llm_recovery.py --device cuda --sequences 64 --length 1024 --micro 16 --pretrained Llama-3.2-1B

Of two Llamas, or of a pretrained model: `wide` has width 512, 8 blocks, MLP 2048 and a vocabulary of 4096; `embedded` is the
base model of the experiments, with a vocabulary of 512. Both arms make updates in turns in one process, on the same tokens and
with the same optimizer. The masked model has its zeros put back after every update. The authors also pad one document to each
sequence: what that costs is a factor of its own, measured on the text of the installed packages.
"""

import argparse
import copy
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

from trainables.llm.anatomy import Anatomy, neurons
from trainables.llm.base import BaseConfig, build_llama, draw_parameters
from trainables.llm.corpus import load_corpus
from trainables.llm.corpus_documents import CorpusConfig
from trainables.llm.dissection import dissect
from trainables.llm.pretrained import load_pretrained
from trainables.llm.surgery import remove
from trainables.llm.training import Trainer, Training
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept, keep_more
from trainables.pruning.surgery import mask
from trainables.shared import Shared
from trainables.storage import Folder

DOCUMENTS_A_BATCH, MOST_TOKENS = 64, 1024  # the authors'
ARMS = ("masked", "cut")
LLAMAS = {
    "wide": (BaseConfig(width=512, num_layers=8, mlp_width=2048, num_heads=8), 4096),
    "embedded": (BaseConfig(), 512),
}
SHAPES = {"wide": (16, 256), "embedded": (16, 128), "pretrained": (4, 256)}
"""Sequences and tokens of each, of an update."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Stands in for a stream of text: speed does not depend on what is said."""

    vocabulary: int
    shape: tuple[int, int]

    def batch(self, index: int) -> Tensor:
        return torch.randint(self.vocabulary, self.shape, generator=torch.Generator().manual_seed(index))


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model in training.

    Attributes:
        flops: a token's, of an update, as `flops_a_token` counts them.
    """

    trainer: Trainer
    flops: float
    device: torch.device
    clock: Callable[[], float]

    def time_updates(self, num_updates: int) -> float:
        """Seconds an update."""
        self._wait()
        start = self.clock()
        self.trainer.run(num_updates)
        self._wait()
        return (self.clock() - start) / num_updates

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def build(name: str, options: argparse.Namespace) -> nn.Module:
    if name == "pretrained":
        return load_pretrained(options.pretrained)
    config, vocabulary = LLAMAS[name]
    model = build_llama(config, vocabulary)
    draw_parameters(model, 0)
    return model


def make_arm(name: str, model: nn.Module, options: argparse.Namespace, sparsity: float) -> Arm:
    """Mask or cut a copy of a model; neurons are chosen at random, so that all blocks keep about as many, rounded up."""
    model, anatomy, device = copy.deepcopy(model), dissect(model, verify=False), torch.device(options.device)
    tensors = dict(model.named_parameters())
    layers = neurons(anatomy, tensors)
    scores = SCORES["random"](tensors, layers, [], torch.Generator().manual_seed(0))
    keep = [
        keep_more(score_H, keep_H, min(len(keep_H), -(-int(keep_H.sum()) // options.multiple) * options.multiple))
        for score_H, keep_H in zip(scores, choose_kept(scores, sparsity), strict=True)
    ]
    if name == "cut":
        remove(model, anatomy, layers, keep)
    model.to(device)
    keep = [keep_H.to(device) for keep_H in keep]

    def put_zeros_back(parameters: dict[str, Tensor], _: float) -> None:
        for units, keep_H in zip(layers, keep, strict=True):
            mask(parameters, units, keep_H)

    shape = (options.sequences, options.length)
    training = Training(
        updates=10**6, batch_size=shape[0], length=shape[1], warmup=0, micro_batch_size=options.micro, compile=options.compile
    )
    tokens = Tokens(model.get_input_embeddings().num_embeddings, (shape[0], shape[1] + 1))
    trainer = Trainer(model, tokens, training, after_update=put_zeros_back if name == "masked" else None)
    clock = time.process_time if options.cpu_time else time.perf_counter
    return Arm(trainer, flops_a_token(model, anatomy, options.length), device, clock)


def flops_a_token(model: nn.Module, anatomy: Anatomy, length: int) -> float:
    """6 a parameter that multiplies, and attention's own products: forward and backward, multiplications and additions."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() == 2}
    looked_up = anatomy.embeddings[1:] if anatomy.is_tied else anatomy.embeddings
    products = sum(sizes.values()) - sum(sizes[f"{name}.weight"] for name in looked_up)
    read = sum(model.get_submodule(block.writers[0].name).weight.numel() for block in anatomy.blocks)  # by what ends attention
    return 6.0 * products + 6.0 * length * read / model.get_input_embeddings().embedding_dim


def measure(model: nn.Module, options: argparse.Namespace, sparsity: float) -> None:
    arms = [make_arm(name, model, options, sparsity) for name in ARMS]
    for arm in arms:
        arm.time_updates(1)
    rounds = [[arm.time_updates(options.updates) for arm in arms] for _ in range(options.rounds)]
    tokens = options.sequences * options.length
    masked, cut = (tokens / statistics.median(times) for times in zip(*rounds, strict=True))
    ratios = sorted(one / other for one, other in rounds)
    possible = arms[0].flops / arms[1].flops
    ratio = statistics.median(ratios)
    print(
        f"  sparsity {sparsity}: masked {masked:.0f} tokens/s, cut {cut:.0f} tokens/s, ratio {ratio:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {ratio / possible:.0%} of the FLOPs ratio {possible:.2f}",
        flush=True,
    )


def peak_mebibytes(name: str, arm: str, sparsity: float) -> float:
    """Of a process that makes two updates of one arm."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", arm, "--models", name, "--sparsities", str(sparsity)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(model: nn.Module, options: argparse.Namespace) -> None:
    trainer = make_arm(options.peak_of, model, options, options.sparsities[0]).trainer
    del model
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


def compare(name: str, options: argparse.Namespace) -> None:
    sequences, length = SHAPES[name]
    options = copy.copy(options)
    options.sequences, options.length = options.sequences or sequences, options.length or length
    model = build(name, options)
    if options.peak_of:
        print_peak(model, options)
        return
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{name}, {count:.1f} M parameters, {options.sequences} sequences of {options.length} tokens, {options.device}")
    for sparsity in options.sparsities:
        measure(model, options, sparsity)
        peaks = ", ".join(f"{arm} {peak_mebibytes(name, arm, sparsity):.0f} MiB" for arm in ARMS)
        print(f"    peak memory: {peaks}", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="by default the one of --pretrained, or both Llamas")
    parser.add_argument("--pretrained", metavar="FOLDER", help="of a model of transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequences", type=int, help="of an update; by default 16, or 4 of a pretrained model")
    parser.add_argument("--length", type=int, help="tokens of each; by default 256, or 128 of the embedded model")
    parser.add_argument("--micro", type=int, help="sequences of one pass; by default all")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9], help="shares of the neurons that go")
    parser.add_argument("--multiple", type=int, default=8, help="of which a block keeps neurons: products of others are slower")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1, help="of each arm in a round")
    parser.add_argument("--cpu-time", action="store_true", help="count the CPU's seconds, for a busy host; with --threads 1")
    parser.add_argument("--peak-of", choices=ARMS, help="print the peak memory of one arm and end")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    for name in options.models or (["pretrained"] if options.pretrained else list(LLAMAS)):
        compare(name, options)
    if not options.peak_of:
        share = padded_share()
        print(f"padding, in a loop of one document a sequence: {share:.0%} of the tokens, a factor of {1 / (1 - share):.2f}")


if __name__ == "__main__":
    main()
