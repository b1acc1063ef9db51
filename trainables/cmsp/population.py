"""P networks of one shape, trained at once as one batched program.

The gradient is written out by hand: the task needs one loss and one kind of layer, and every product then is one
batched matrix product over several networks, with no graph to build.

On the CPU a network's numbers do not depend on its company, bit for bit. For that
  - no product is a batch of one, and every network's batch is divided alike (lanes.py);
  - sizes are whole cache lines (networks.py);
  - everything elementwise is one rounding at a time: fused forms such as lerp or sigmoid round differently in a vector's
    tail, and where the tail falls depends on how many networks there are.

Axes: P networks, L lanes of a batched product, B samples, C samples of a chunk, I columns of a sample, H hidden units,
F all parameters of a network, flat.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.cmsp.lanes import Lanes, Layers, divide_samples, form_lanes
from trainables.cmsp.networks import Shape, split, split_padded

ADAM_EPS = 1e-5  # arXiv:2505.15811, where networks are trained from scratch
TORCH_ADAM_EPS = 1e-8  # torch's default; arXiv:2505.15811, in lasso training and in recovery
ADAM_BETAS = (0.9, 0.999)


class Population:
    """P networks with ReLU between linear layers and two logits, and an Adam optimizer for each.

    Args:
        parameter_PF: as `networks.join` makes it; taken over, and changed in place.
        learning_rates: one a network.
        adam_eps: added to the root of Adam's second moment.
    """

    def __init__(
        self, shape: Shape, parameter_PF: Tensor, learning_rates: Sequence[float], *, adam_eps: float = ADAM_EPS
    ) -> None:
        self.shape = shape
        self._width = max(shape.padded.widths)
        self._adam_eps = adam_eps
        self._learning_rate_P1 = torch.tensor(learning_rates, dtype=torch.float32, device=parameter_PF.device)[:, None]
        self._num_updates = torch.zeros((), dtype=torch.float64, device=parameter_PF.device)
        self._hold(parameter_PF)
        self._mean_PF = torch.zeros_like(parameter_PF)
        self._square_PF = torch.zeros_like(parameter_PF)

    def _hold(self, parameter_PF: Tensor) -> None:
        self.parameter_PF = parameter_PF
        self.gradient_PF, self._scratch_PF = torch.zeros_like(parameter_PF), torch.zeros_like(parameter_PF)
        # batched products run side by side only where the result is contiguous: each layer's in a tensor of its own
        self._half_gradients = [
            (weight_PIO.new_zeros(2, *weight_PIO.shape), bias_P1O.new_zeros(2, *bias_P1O.shape))
            for weight_PIO, bias_P1O in split_padded(self.shape, parameter_PF)
        ]
        self._lanes: dict[int, list[Lanes]] = {}
        self._buffers: dict[tuple[int, int], _Buffers] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name, with the axis P, as `networks.split` names them; views in padded sizes."""
        return split(self.shape.padded, self.parameter_PF)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The same of the latest `backward`."""
        return split(self.shape.padded, self.gradient_PF)

    def update(self, x_PBI: Tensor, y_PB: Tensor) -> None:
        """Make one Adam update of every network on the mean loss of its own samples."""
        self.backward(x_PBI, y_PB)
        self.adam()

    def losses(self, x_PBI: Tensor, y_PB: Tensor) -> Tensor:
        """Cross-entropy of every sample in nats: loss_PB. With two classes it is softplus(-margin of the right one)."""
        wrong_PB = self.margins(x_PBI) * (1 - 2 * y_PB)
        return wrong_PB.relu() + wrong_PB.abs().neg_().exp_().log1p_()

    def accuracies(self, x_PBI: Tensor, y_PB: Tensor) -> Tensor:
        """Share of samples whose more likely class is the right one: accuracy_P, 0..1, float64; NaN if a margin is not finite."""
        margin_PB = self.margins(x_PBI)
        right_PB = ((margin_PB > 0) == (y_PB > 0)).double()
        right_P = right_PB.where(margin_PB.isfinite(), torch.nan).sum(1)
        return right_P / torch.full_like(right_P, y_PB.shape[1])  # by a number a GPU would multiply: 1 could come out less

    def margins(self, x_PBI: Tensor) -> Tensor:
        """Logit of class 1 minus logit of class 0, for every sample: margin_PB."""
        margin_PB = x_PBI.new_empty(x_PBI.shape[:2])
        for lanes in self._lanes_for(x_PBI.shape[1]):
            for chunk in divide_samples(lanes, x_PBI.shape[1], width=self._width):
                chunk.put(margin_PB, self._forward(lanes, chunk.take(x_PBI))[1].squeeze(1))
        return margin_PB

    def backward(self, x_PBI: Tensor, y_PB: Tensor) -> None:
        """Compute the gradient of every network's mean loss."""
        num_samples = x_PBI.shape[1]
        for lanes in self._lanes_for(num_samples):
            for chunk in divide_samples(lanes, num_samples, width=self._width):
                x_LCI = chunk.take(x_PBI)
                buffers, margin_L1C = self._forward(lanes, x_LCI)
                error_L1C = margin_L1C.neg_().exp_().add_(1).reciprocal_().sub_(chunk.take(y_PB).unsqueeze(1)).div_(num_samples)
                chunk.drop_surplus(error_L1C)
                self._backward(lanes, lanes.gradients[chunk.half], chunk.is_first, x_LCI, buffers, error_L1C)
        self._join_halves()

    def _join_halves(self) -> None:
        for layer, both in enumerate(zip(self._half_gradients, split_padded(self.shape, self.gradient_PF), strict=True)):
            (weight_2PIO, bias_2P1O), (weight_PIO, bias_P1O) = both
            torch.add(*weight_2PIO, out=weight_PIO)
            if layer:
                torch.add(*bias_2P1O, out=bias_P1O)

    def _forward(self, lanes: Lanes, x_LCI: Tensor) -> tuple["_Buffers", Tensor]:
        """Activations of every hidden layer, and the margins."""
        buffers = self._buffers_for(*x_LCI.shape[:2])
        activation_LCH = x_LCI
        for layer, (weight_LIO, bias_L1O) in enumerate(lanes.layers[:-1]):
            out_LCH = buffers.activations[layer]
            if layer == 0:
                torch.bmm(activation_LCH, weight_LIO, out=out_LCH)
            else:
                torch.baddbmm(bias_L1O, activation_LCH, weight_LIO, out=out_LCH)
            activation_LCH = out_LCH.relu_()
        weight_LHO, bias_L1O = lanes.layers[-1]
        slope_L1H = (weight_LHO[..., 1] - weight_LHO[..., 0]).unsqueeze(1)
        offset_L11 = bias_L1O[..., 1:] - bias_L1O[..., :1]
        return buffers, torch.baddbmm(offset_L11, slope_L1H, activation_LCH.mT)

    def _backward(
        self, lanes: Lanes, gradients: Layers, is_first: bool, x_LCI: Tensor, buffers: "_Buffers", error_L1C: Tensor
    ) -> None:
        weight_LHO, _ = lanes.layers[-1]
        slope_L1H = torch.bmm(error_L1C, buffers.activations[-1])
        offset_L11 = torch.bmm(error_L1C, buffers.one_LC1)
        for gradient, part in zip(gradients[-1], (slope_L1H.mT, offset_L11), strict=True):
            both = torch.cat([-part, part], dim=-1)
            gradient.copy_(both) if is_first else gradient.add_(both)
        error_LCH = buffers.errors[-1]
        torch.mul(error_L1C.mT, (weight_LHO[..., 1] - weight_LHO[..., 0]).unsqueeze(1), out=error_LCH)
        for layer in reversed(range(len(lanes.layers) - 1)):
            torch.ops.aten.threshold_backward.grad_input(error_LCH, buffers.activations[layer], 0, grad_input=error_LCH)
            weight_gradient_LIO, bias_gradient_L1O = gradients[layer]
            if layer == 0:
                _accumulate(weight_gradient_LIO, x_LCI.mT, error_LCH, is_first)  # its bias is one of its weights
                return
            _accumulate(weight_gradient_LIO, buffers.activations[layer - 1].mT, error_LCH, is_first)
            _accumulate(bias_gradient_L1O, buffers.one_LC1.mT, error_LCH, is_first)
            error_LCH = torch.bmm(error_LCH, lanes.layers[layer][0].mT, out=buffers.errors[layer - 1])

    def adam(self) -> None:
        """Make one Adam update with the latest gradient, which is used up."""
        time = self._num_updates.add_(1)
        beta1, beta2 = ADAM_BETAS
        gradient_PF, scratch_PF = self.gradient_PF, self._scratch_PF
        self._mean_PF.mul_(beta1).add_(torch.mul(gradient_PF, 1 - beta1, out=scratch_PF))
        self._square_PF.mul_(beta2).add_(torch.mul(gradient_PF, gradient_PF, out=scratch_PF).mul_(1 - beta2))
        denominator_PF = torch.sqrt(self._square_PF, out=scratch_PF).div_((1 - beta2**time).sqrt().float()).add_(self._adam_eps)
        rate_P1 = (self._learning_rate_P1 / (1 - beta1**time)).float()
        self.parameter_PF.sub_(torch.mul(self._mean_PF, rate_P1, out=gradient_PF).div_(denominator_PF))

    def _lanes_for(self, num_samples: int) -> list[Lanes]:
        if num_samples not in self._lanes:
            self._lanes[num_samples] = form_lanes(self.shape, self.parameter_PF, self._half_gradients, num_samples)
        return self._lanes[num_samples]

    def _buffers_for(self, num_lanes: int, length: int) -> "_Buffers":
        """Memory for one chunk, taken once: fresh pages cost more than what is written on them."""
        key = (num_lanes, length)
        if key not in self._buffers:
            empty = self.parameter_PF.new_empty
            self._buffers[key] = _Buffers(
                activations=[empty(num_lanes, length, width) for width in self.shape.padded.widths],
                errors=[empty(num_lanes, length, width) for width in self.shape.padded.widths],
                one_LC1=self.parameter_PF.new_ones(num_lanes, length, 1),  # expanded, its products would run one by one
            )
        return self._buffers[key]

    @classmethod
    def concatenate(cls, populations: Sequence["Population"]) -> "Population":
        """The networks of several populations of one shape as one, copied; all must have made as many updates."""
        first = populations[0]
        whole = cls(first.shape, torch.cat([each.parameter_PF for each in populations]), [], adam_eps=first._adam_eps)
        whole._mean_PF = torch.cat([each._mean_PF for each in populations])
        whole._square_PF = torch.cat([each._square_PF for each in populations])
        whole._learning_rate_P1 = torch.cat([each._learning_rate_P1 for each in populations])
        whole._num_updates.copy_(first._num_updates)
        return whole

    def become(self, whole: "Population", part: slice) -> None:
        """Take over the state of some networks of another population of the same shape, copied."""
        self._mean_PF, self._square_PF = whole._mean_PF[part].clone(), whole._square_PF[part].clone()
        self._learning_rate_P1 = whole._learning_rate_P1[part].clone()
        self._num_updates.copy_(whole._num_updates)
        self._hold(whole.parameter_PF[part].clone())

    def keep(self, index_P: Tensor) -> None:
        """Go on with these networks only; the others leave the batch."""
        self._mean_PF, self._square_PF = self._mean_PF[index_P], self._square_PF[index_P]
        self._learning_rate_P1 = self._learning_rate_P1[index_P]
        self._hold(self.parameter_PF[index_P])

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameter_PF.to("cpu", copy=True),
            "adam_means": self._mean_PF.to("cpu", copy=True),
            "adam_squares": self._square_PF.to("cpu", copy=True),
            "learning_rates": self._learning_rate_P1.to("cpu", copy=True),
            "num_updates": self._num_updates.to("cpu", copy=True),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a population of the same shape, whatever its number of networks."""
        device = self.parameter_PF.device
        self._mean_PF = state["adam_means"].to(device, copy=True)
        self._square_PF = state["adam_squares"].to(device, copy=True)
        self._learning_rate_P1 = state["learning_rates"].to(device, copy=True)
        self._num_updates = state["num_updates"].to(device, copy=True)
        self._hold(state["parameters"].to(device, copy=True))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Buffers:
    activations: list[Tensor]
    errors: list[Tensor]
    one_LC1: Tensor


def _accumulate(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """Add a batched product to a total, or begin it."""
    if is_first:
        torch.bmm(a, b, out=total)
    else:
        torch.baddbmm(total, a, b, out=total)
