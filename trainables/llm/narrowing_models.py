"""The models of a narrowing trial: the base model with units cut out, or a small one of the shape that cutting leaves.

Axes: H units of one layer, W windows, T tokens of a window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trainables.laws import require
from trainables.llm.anatomy import Anatomy, neurons, residual
from trainables.llm.base import draw_parameters
from trainables.llm.dissection import dissect
from trainables.llm.gates import NextTokenLoss
from trainables.llm.narrowing_config import Method, NarrowingConfig
from trainables.llm.sizes import fitting_config
from trainables.llm.stock import next_stock_width
from trainables.llm.surgery import remove
from trainables.llm.training_ranks import num_ranks
from trainables.pruning.scores import SCORES
from trainables.pruning.selection import choose_kept, keep_more, num_removed
from trainables.pruning.units import Units
from trainables.randomness import generator

_BLIND_SCORE_OF: dict[Method, str] = {"group_lasso": "weight_norm", "weight_norm": "weight_norm", "random": "random"}
_TOKENS_AT_ONCE, _LOGITS_AT_ONCE = 2048, 2**28  # that scores read


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters as they are now, those that are tied once."""
    return dict(model.named_parameters())


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model has, those that are tied counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def layers_of(model: nn.Module, anatomy: Anatomy) -> list[Units]:
    """The neurons of every block, then the residual dimensions."""
    tensors = parameters_of(model)
    return [*neurons(anatomy, tensors), residual(anatomy, tensors)]


def require_cuttable(model: nn.Module, config: NarrowingConfig) -> None:
    """Refuse a model that this way could not cut in the end, before it is trained.

    Raises:
        ValueError: if residual dimensions are to leave a model with LayerNorm.
    """
    anatomy = dissect(model, verify=False)
    width = layers_of(model, anatomy)[-1].count
    is_whole = not config.prunes or _narrow_width(model, width, config) == width
    centred = [norm.name for norm in anatomy.norms if norm.is_centred]
    law = "residual_sparsity must be 0 to prune a model with LayerNorm, whose mean is over all dimensions"
    require(is_whole or not centred, law, config.residual_sparsity, "remove neurons only")


def cut(model: nn.Module, config: NarrowingConfig, window_WT: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Score all units, and cut the least of them out, in place.

    Args:
        window_WT: of the kept domain, for scores that read.

    Returns:
        tokens that the scores read, and keep_H of every layer that was cut, on the CPU.
    """
    anatomy = dissect(model)
    layers = layers_of(model, anatomy)
    reads = config.method == "attribution"
    losses = _losses(model, anatomy, window_WT) if reads else []
    score = SCORES[score_of(config)]
    scores = score(parameters_of(model), layers, losses, generator(config.seed, "scores"))
    keep = choose_kept(scores[:-1], config.neuron_sparsity, per_layer=config.per_layer)
    (keep_D,) = choose_kept(scores[-1:], config.residual_sparsity)
    keep.append(keep_more(scores[-1], keep_D, _narrow_width(model, layers[-1].count, config)))
    keep = _agreed(keep)
    if keep[-1].all():  # a stream that stays whole may be under LayerNorm
        layers, keep = layers[:-1], keep[:-1]
    remove(model, anatomy, layers, keep)
    kept = {units.name: keep_H.cpu() for units, keep_H in zip(layers, keep, strict=True)}
    return window_WT.numel() if reads else 0, kept


def score_of(config: NarrowingConfig) -> str:
    """The name in SCORES that a method which cuts ranks by."""
    return config.attribution_score if config.method == "attribution" else _BLIND_SCORE_OF[config.method]


def student(base: nn.Module, config: NarrowingConfig) -> nn.Module:
    """An untrained model of the shape that cutting leaves of the base model, all layers alike."""
    anatomy = dissect(base)
    *mlps, stream = layers_of(base, anatomy)
    num_neurons = max(1, sum(units.count for units in mlps) // len(mlps))  # a base that was cut before has unlike layers
    num_kept = num_neurons - num_removed(num_neurons, config.neuron_sparsity)
    kept = dict.fromkeys((units.name for units in mlps), num_kept)
    kept[stream.name] = _narrow_width(base, stream.count, config)
    shape = fitting_config(base, anatomy, kept, None).config
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        model: nn.Module = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
    draw_parameters(model, config.seed, "student")
    return model.eval()


def _narrow_width(model: nn.Module, width: int, config: NarrowingConfig) -> int:
    """Residual dimensions that are left: as many as the sparsity says, and then up to what the model's class takes."""
    return min(width, next_stock_width(model.config, width - num_removed(width, config.residual_sparsity)))


def _losses(model: nn.Module, anatomy: Anatomy, window_WT: Tensor) -> list[NextTokenLoss]:
    """The mean loss in parts of equal size, so that every window weighs the same."""
    rows = len(model.get_parameter(f"{anatomy.embeddings[0]}.weight"))
    most = max(1, min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // rows) // window_WT.shape[1])
    size = next(size for size in range(min(most, len(window_WT)), 0, -1) if len(window_WT) % size == 0)
    return [NextTokenLoss(model, anatomy, part_BT) for part_BT in torch.split(window_WT, size)]


def _agreed(keep: Sequence[Tensor]) -> list[Tensor]:
    """The choice of the first of several processes that train one model; their scores may differ in the last bits."""
    if num_ranks() == 1:
        return list(keep)
    agreed = []
    for keep_H in keep:
        chosen_H = keep_H.to(torch.uint8)
        torch.distributed.broadcast(chosen_H, src=0)
        agreed.append(chosen_H.to(torch.bool))
    return agreed
