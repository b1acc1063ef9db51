"""Trains one model in every way, alone or as one rank of several; what is left of each is a value.

python training_of_ranks.py RANK SIZE FOLDER
"""

import copy
import sys

import torch
from torch import distributed
from toy_model import Model, ModelWithParts, changed, neurons_of, stream

from trainables.experiment import DivergedError
from trainables.llm import loss_head
from trainables.llm.training import Teacher, Trainer
from trainables.llm.training_ranks import rank
from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step

WAYS = ("plain", "head", "parts", "penalty", "proximal", "teacher", "resumed")
TRAINING = changed(batch_size=6)


class Bursting(Model):
    """Says what is no number, in the last rank."""

    def forward(self, token_BT, *, use_cache):
        output = super().forward(token_BT, use_cache=use_cache)
        if rank() == distributed.get_world_size() - 1:
            output.logits = output.logits * torch.inf
        return output


def begin(way, model):
    """A trainer of each kind."""
    layers = neurons_of(model)
    ways = {
        "parts": {"training": changed(batch_size=6, micro_batch_size=2)},  # 2 and 1 of the 3 rows that each of 2 ranks has
        "penalty": {"add_penalty": lambda tensors, gradients: add_group_lasso_gradient(tensors, gradients, layers, 0.3)},
        "proximal": {"after_update": lambda tensors, rate: proximal_step(tensors, layers, 5 * rate)},
        "teacher": {"teacher": Teacher(model=Model(seed=1, width=9), alpha=0.5, temperature=2.0)},
    }
    arguments = {"training": TRAINING, **ways.get(way, {})}
    return Trainer(model, stream(arguments["training"]), **arguments)


def train(way):
    """Make updates; the parameters and the loss that are left. Ranks but the first begin with other numbers."""
    model = (Model if way == "plain" else ModelWithParts)(seed=rank())
    trainer = begin(way, model)
    trainer.run(3)
    if way == "resumed":
        model, state = copy.deepcopy(model), trainer.state_dict()
        trainer = begin(way, model)
        trainer.load_state_dict(state)
    trainer.run(2)
    return {**model.state_dict(), "loss_nats": torch.tensor(trainer.last_loss_nats)}


def sentence(model, training, error):
    """What a training says that cannot be."""
    try:
        Trainer(model, stream(training), training).run(1)
    except error as raised:
        return str(raised)
    return ""


def main():
    number, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    loss_head.FEW_LOGITS = 0
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=size)
    left = {way: train(way) for way in WAYS}
    said = {
        "diverged": sentence(Bursting(), TRAINING, DivergedError),
        "odd": sentence(Model(), changed(batch_size=5), ValueError),
    }
    torch.save({"left": left, "said": said}, f"{folder}/{number}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
