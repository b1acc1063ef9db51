"""Several small networks in training side by side: parameters, Adam's moments, and cutting out what is dead.

Networks that have lost more units than others are padded with units of zeros: no gradient reaches them and Adam leaves
them at zero. Numbers of a network may differ in their last bits in other company; in the same company they do not.

Axes: P networks, H hidden units.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.pruning.penalties import group_norms
from trainables.pruning.surgery import mask, remove
from trainables.pruning.units import Tensors
from trainables.relu_networks import hidden_neurons, stack

_BETAS, _EPS = (0.9, 0.999), 1e-8


class Population:
    """Networks of one depth, each with parameters as `trainables.relu_networks` names them.

    Args:
        networks: without an axis in front; copied.
        clip_norm: of each network's gradient; inf for no clipping.

    Attributes:
        tensors: of all networks, with the axis P in front.
        kept: of each network, for each hidden layer, which of its first units have not been cut out: index_H, ascending.
    """

    def __init__(self, networks: Sequence[Tensors], *, learning_rate: float, clip_norm: float) -> None:
        self.tensors = stack(networks)
        self._learning_rate, self._clip_norm = learning_rate, clip_norm
        self._moments = [{name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()} for _ in range(2)]
        self._num_updates = 0
        self.kept = [[torch.arange(units.count) for units in hidden_neurons(network)] for network in networks]

    def __len__(self) -> int:
        return len(self.tensors["layer0.bias"])

    def gradients(self, loss: Callable[[Tensors], Tensor]) -> dict[str, Tensor]:
        """Differentiate each network's own loss.

        Args:
            loss: function of tensors that returns loss_P.
        """
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.tensors.items()}
        gradients = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))

    @torch.no_grad()
    def adam(self, gradients: Tensors) -> None:
        """Make one Adam update of every network, its gradient clipped.

        Source: Kingma and Ba 2015; torch.optim.Adam's defaults.
        """
        self._num_updates += 1
        first_step, second_step = (1 - beta**self._num_updates for beta in _BETAS)
        scale_P = self._clipping(gradients)
        for name, gradient in gradients.items():
            if scale_P is not None:
                gradient = gradient * scale_P.view(-1, *[1] * (gradient.dim() - 1))
            first, second = (moments[name] for moments in self._moments)
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            denominator = (second / second_step).sqrt_().add_(_EPS)
            self.tensors[name].addcdiv_(first, denominator, value=-self._learning_rate / first_step)

    def _clipping(self, gradients: Tensors) -> Tensor | None:
        """What each network's gradient is multiplied with so that its norm is at most the law's."""
        if self._clip_norm == float("inf"):
            return None
        square_P = sum(gradient.square().flatten(1).sum(1) for gradient in gradients.values())
        norm_P = torch.as_tensor(square_P).sqrt()
        return (self._clip_norm / (norm_P + 1e-6)).clamp(max=1)

    @torch.no_grad()
    def alive(self) -> list[Tensor]:
        """Which units are not zero in all that they own: alive_PH of each hidden layer."""
        return [group_norms(self.tensors, units) > 0 for units in hidden_neurons(self.tensors)]

    def num_alive(self) -> list[int]:
        """Living units of each network, of all hidden layers together."""
        total_P = torch.stack([alive_PH.sum(1) for alive_PH in self.alive()]).sum(0)
        return [int(total) for total in total_P.tolist()]

    @torch.no_grad()
    def mask(self, keep: Sequence[Tensor]) -> None:
        """Zero units and what Adam remembers of them, for good: the gradient of such a unit is exactly zero.

        Args:
            keep: keep_PH of each hidden layer, bool.
        """
        for tensors in (self.tensors, *self._moments):
            for units, keep_PH in zip(hidden_neurons(tensors), keep, strict=True):
                mask(tensors, units, keep_PH)

    def network(self, place: int) -> dict[str, Tensor]:
        """A copy of one network, without units that are zero."""
        return self._cut(self.tensors, place, [alive_PH[place] for alive_PH in self.alive()])

    def kept_by(self, place: int) -> list[Tensor]:
        """Which of its first units a network has as `network` gives it: index_H of each hidden layer."""
        alive = [alive_PH[place].cpu() for alive_PH in self.alive()]
        return [index_H[alive_H[: len(index_H)]] for index_H, alive_H in zip(self.kept[place], alive, strict=True)]

    @torch.no_grad()
    def keep(self, places: Sequence[int]) -> None:
        """Go on with these networks alone, in tensors as small as their living units allow."""
        alive = [alive_PH[list(places)] for alive_PH in self.alive()]
        widest = [int(alive_PH.sum(1).max()) for alive_PH in alive]
        if list(places) == list(range(len(self))) and widest == [alive_PH.shape[1] for alive_PH in alive]:
            return
        self.kept = [self.kept_by(place) for place in places]
        self.tensors, *self._moments = (
            stack([self._cut(tensors, place, kept) for place, *kept in zip(places, *alive, strict=True)])
            for tensors in (self.tensors, *self._moments)
        )

    def _cut(self, tensors: Tensors, place: int, alive: Sequence[Tensor]) -> dict[str, Tensor]:
        one = {name: tensor[place] for name, tensor in tensors.items()}
        return remove(one, hidden_neurons(one), alive)

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything but what the constructor takes."""
        copies = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in (self.tensors, *self._moments)]
        kept = [[index_H.clone() for index_H in layers] for layers in self.kept]
        return {"tensors": copies[0], "moments": copies[1:], "num_updates": self._num_updates, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, which may hold other networks of other sizes."""
        device = self.tensors["layer0.bias"].device
        self.tensors, *self._moments = (
            {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
            for tensors in (state["tensors"], *state["moments"])
        )
        self._num_updates = state["num_updates"]
        self.kept = [[index_H.clone() for index_H in layers] for layers in state["kept"]]
