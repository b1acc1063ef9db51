"""Cut neurons and residual dimensions out of a language model, which then computes what the masked one computes.

The model stays one of its stock class wherever that can be: what a config says of all norms at once, or of all MLPs, is made
true of all of them.

Axes: H units of one layer, D residual dimensions.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.anatomy import Anatomy, Norm
from trainables.llm.gates import gated
from trainables.llm.observation import evaluating, tokens
from trainables.llm.probing import embedding_scale
from trainables.llm.resizing import eps_of, replace_parameter, set_eps, set_multiplier
from trainables.llm.sizes import Sizes, fitting_config
from trainables.llm.stock import adopt
from trainables.pruning.units import Units


@torch.no_grad()
def remove(model: nn.Module, anatomy: Anatomy, layers: Sequence[Units], keep: Sequence[Tensor]) -> None:
    """Cut units out of a model and of its config, in place; it then computes what the masked model computes.

    Parameters are replaced, so make the optimizer afterwards. Tied parameters stay tied; the anatomy stays true.

    Without Z of D + Z residual dimensions an RMSNorm averages over D. Its eps is multiplied by (D+Z)/D and its scale by the
    root of it, which gives what it gave over zeros (see `trainables.pruning.surgery.remove_units`). A norm of queries or keys
    that takes its eps from the same field of the config gets it as well, and its projection is multiplied by
    c = sqrt(eps' / eps), as c q / sqrt(mean (c q)^2 + eps') = q / sqrt(mean q^2 + eps). An embedding that multiplies with
    the root of the width will do so with that of a smaller one, so its rows are made larger.

    Args:
        layers: of `anatomy.neurons` or `anatomy.residual`.
        keep: keep_H of each layer, bool.

    Raises:
        ValueError: if residual dimensions are to leave a model with LayerNorm, whose mean and variance are over zeros, too;
            if a choice does not fit its layer; if the config's fields cannot be told. The model is then unchanged. Also if
            the numbers come out differently, which says that the structure was not understood.

    Source: arXiv:2505.15811, the authors' model surgery. Differs: their correction is a norm class of its own; here the
    result is of stock modules.
    """
    for units, keep_H in zip(layers, keep, strict=True):
        _require_possible(model, anatomy, units, keep_H)
    plan = _plan(model, anatomy, layers, keep)
    expected = _masked_logits(model, anatomy, layers, keep)
    for units, keep_H in zip(layers, keep, strict=True):
        for member in units.members:
            replace_parameter(model, member.parameter, member.axis, keep_H.nonzero().squeeze(-1))
    _correct_norms(model, anatomy, plan)
    _correct_inner_norms(model, anatomy, plan)
    _fold_embedding_scale(model, anatomy, plan)
    adopt(model.config, plan.sizes.config)
    _require_same(expected, _masked_logits(model, anatomy, [], []))


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """What is to change, all of it known before the first change.

    Attributes:
        shrinkage: (D+Z)/D.
        eps: of the norms over the residual stream, afterwards.
        multiplier: by what the token embedding multiplies its rows now and afterwards.
    """

    sizes: Sizes
    shrinkage: float
    eps: float | None
    multiplier: tuple[float, float]


def _plan(model: nn.Module, anatomy: Anatomy, layers: Sequence[Units], keep: Sequence[Tensor]) -> _Plan:
    """Find out what becomes of the config, and refuse what cannot be done, before anything is changed."""
    kept = {units.name: int(keep_H.sum()) for units, keep_H in zip(layers, keep, strict=True)}
    residual = next((units for units in layers if units.kind == "residual"), None)
    shrinkage = 1.0 if residual is None else residual.count / kept[residual.name]
    eps = None
    if shrinkage > 1:
        old = {eps_of(model.get_submodule(norm.name)) for norm in anatomy.norms}
        require(len(old) == 1, "all norms over the residual stream must have one eps", old, "remove neurons only")
        eps = old.pop() * shrinkage
    sizes = fitting_config(model, anatomy, kept, eps)
    _require_movable(model, anatomy, sizes.norm_eps)
    return _Plan(sizes, shrinkage, eps, _multiplier(model, anatomy, sizes))


def _multiplier(model: nn.Module, anatomy: Anatomy, sizes: Sizes) -> tuple[float, float]:
    """By what the token embedding multiplies, now and afterwards: another number only if it is the root of the width."""
    root = math.sqrt(sizes.old_width)
    if sizes.width == sizes.old_width or not math.isclose(embedding_scale(_embedding(model, anatomy)), root, rel_tol=0.01):
        return 1.0, 1.0
    return root, math.sqrt(sizes.width)


def _embedding(model: nn.Module, anatomy: Anatomy) -> nn.Embedding:
    module = model.get_submodule(anatomy.embeddings[0])
    assert isinstance(module, nn.Embedding)
    return module


def _correct_norms(model: nn.Module, anatomy: Anatomy, plan: _Plan) -> None:
    if plan.eps is not None:
        for norm in anatomy.norms:
            set_eps(model.get_submodule(norm.name), plan.eps)
            _scale_norm(model, norm, math.sqrt(plan.shrinkage))


def _scale_norm(model: nn.Module, norm: Norm, factor: float) -> None:
    """Multiply what the norm multiplies with, offset + weight."""
    weight = model.get_parameter(f"{norm.name}.weight")
    weight.copy_((norm.offset + weight) * factor - norm.offset)


def _correct_inner_norms(model: nn.Module, anatomy: Anatomy, plan: _Plan) -> None:
    """Give norms of queries and keys the eps that their config gives them, and their inputs the size that goes with it."""
    for inner in anatomy.inner_norms:
        module, new = model.get_submodule(inner.name), plan.sizes.norm_eps.get(inner.name)
        if new is not None and inner.source is not None and new != eps_of(module):
            factor = math.sqrt(new / eps_of(module))
            for member in inner.source.outputs():
                model.get_parameter(member.parameter).mul_(factor)
            set_eps(module, new)


def _fold_embedding_scale(model: nn.Module, anatomy: Anatomy, plan: _Plan) -> None:
    """Make up for another multiplier in the rows; a head that shares them is made up for in the norm before it."""
    now, later = plan.multiplier
    if now != later:
        embedding = _embedding(model, anatomy)
        set_multiplier(embedding, now, later)
        embedding.weight.mul_(now / later)
        if anatomy.is_tied and anatomy.final_norm is not None:
            _scale_norm(model, anatomy.final_norm, later / now)


def _require_possible(model: nn.Module, anatomy: Anatomy, units: Units, keep_H: Tensor) -> None:
    units.check(dict(model.named_parameters()))
    law = f"keep must hold one bool for each of the {units.count} units of {units.name}"
    got = f"{keep_H.dtype} of shape {tuple(keep_H.shape)}"
    require(keep_H.dtype == torch.bool and keep_H.shape == (units.count,), law, got, "use selection.choose_kept")
    if units.kind != "residual":
        down = next(block.mlp.down for block in anatomy.blocks if block.mlp.name == units.name)
        module = type(model.get_submodule(down.name)).__name__
        law = f"{units.name} must keep a neuron, as {module} takes no empty input"
        remedy = "keep one with selection.keep_more, or mask the neurons"
        require(down.orientation == "out_in" or bool(keep_H.any()), law, "none", remedy)
    else:
        law = "residual dimensions can be removed under RMSNorm only"
        centred = [norm.name for norm in anatomy.norms if norm.is_centred]
        require(not centred, law, f"LayerNorm in {', '.join(centred)}", "remove neurons only, or mask the dimensions")
        require(bool(keep_H.any()), "the residual stream must keep a dimension", "none", "use a lower sparsity")


def _require_movable(model: nn.Module, anatomy: Anatomy, norm_eps: Mapping[str, float]) -> None:
    for inner in anatomy.inner_norms:
        new = norm_eps.get(inner.name)
        if new is not None and new != eps_of(model.get_submodule(inner.name)):
            law = f"{inner.name}, which shares its eps with the norms over the residual stream, must norm one projection's output"
            require(inner.source is not None, law, "something else", "remove neurons only")


def _masked_logits(model: nn.Module, anatomy: Anatomy, layers: Sequence[Units], keep: Sequence[Tensor]) -> Tensor | None:
    """Logits of two short sequences without some units; None on the meta device."""
    weight = next(model.parameters())
    if weight.is_meta:
        return None
    gates = {units.name: keep_H.to(weight) for units, keep_H in zip(layers, keep, strict=True)}
    with evaluating(model), gated(model, anatomy, gates):
        output: Any = model(tokens(model), use_cache=False)
    logits: Tensor = output.logits
    return logits


def _require_same(expected: Tensor | None, found: Tensor | None) -> None:
    if expected is not None and found is not None:
        error = float((expected - found).abs().max())
        tolerance = math.sqrt(torch.finfo(found.dtype).eps) * float(expected.abs().max())
        law = f"the smaller model must compute what the masked one computes, to {tolerance:.1e} in logits"
        require(error <= tolerance, law, f"a difference of {error:.1e}", "this model is spoilt and its structure not supported")
