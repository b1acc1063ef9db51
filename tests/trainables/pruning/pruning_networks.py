"""A small language model of gated MLPs on a residual stream, with gates on its units, for the tests beside this file."""

import torch
from torch import nn

from trainables.pruning.units import gated_neurons, residual_dimensions

DIMENSIONS, NEURONS, VOCABULARY = 12, 20, 17


class Block(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.norm = nn.RMSNorm(DIMENSIONS, eps=eps)
        self.gate = nn.Linear(DIMENSIONS, NEURONS)
        self.up = nn.Linear(DIMENSIONS, NEURONS)
        self.down = nn.Linear(NEURONS, DIMENSIONS)


class GatedNetwork(nn.Module):
    """Two blocks, then a head whose weight is the embedding's. The eps are large, so that a wrong one is seen."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIMENSIONS)
        self.blocks = nn.ModuleList([Block(eps=0.3), Block(eps=None)])
        self.norm = nn.RMSNorm(DIMENSIONS, eps=0.1)
        self.head = nn.Linear(DIMENSIONS, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        for norm in (self.norm, *(block.norm for block in self.blocks)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, tokens, gates=None):
        """Logits, with gates as `trainables.pruning.scores.BatchLoss` has them; none leaves units as they are."""
        gates = gates or {}
        on_stream = gates.get("residual", 1.0)
        x = self.embedding(tokens) * on_stream
        for index, block in enumerate(self.blocks):
            h = block.norm(x)
            a = nn.functional.silu(block.gate(h)) * block.up(h)
            x = x + block.down(a * gates.get(f"block{index}", 1.0)) * on_stream
        return self.head(self.norm(x))


def units_of(network):
    """The neurons of both blocks, then the residual dimensions."""
    tensors = dict(network.named_parameters())
    blocks = ["blocks.0", "blocks.1"]
    neurons = [
        gated_neurons(tensors, name=f"block{index}", gate=f"{block}.gate", up=f"{block}.up", down=f"{block}.down")
        for index, block in enumerate(blocks)
    ]
    residual = residual_dimensions(
        tensors,
        embeddings=["embedding"],
        readers=[f"{block}.{reader}" for block in blocks for reader in ("gate", "up")],
        writers=[f"{block}.down" for block in blocks],
        norms=["norm", "blocks.0.norm", "blocks.1.norm"],
    )
    return [*neurons, residual]


class NextToken:
    """The mean loss of one batch of random tokens, as a `BatchLoss`."""

    def __init__(self, network, seed, *, shape=(2, 5)):
        generator = torch.Generator().manual_seed(seed)
        self.network = network
        self.activation_shape = shape
        self.tokens, self.targets = torch.randint(VOCABULARY, (2, *shape), generator=generator)

    def __call__(self, tensors, gates):
        logits = torch.func.functional_call(self.network, dict(tensors), (self.tokens, gates))
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
