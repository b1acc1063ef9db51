"""The group lasso on a language model's neurons, while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from trainables.pruning.penalties import add_group_lasso_gradient, proximal_step
from trainables.pruning.strength import AutoStrength, StrengthRule
from trainables.pruning.units import Units

Way = Literal["subgradient", "proximal"]


class GroupLasso:
    """Hangs on a `trainables.llm.training.Trainer`: as `add_penalty` and `after_update`.

    Args:
        layers: units whose groups are to become short.
        strength: weight of the penalty in the loss, > 0.
        rule: how the strength follows the loss on the data; None: it is constant.

    Source: arXiv:2505.15811, section 4 (a constant subgradient).
    """

    def __init__(self, layers: Sequence[Units], way: Way, strength: float, rule: StrengthRule | None = None) -> None:
        self._layers, self._way = layers, way
        self._strength = strength
        self._auto = None if rule is None else AutoStrength(strength, rule)

    @property
    def strength(self) -> float:
        """Of the next update."""
        return self._strength if self._auto is None else self._auto.strength

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` must hear of every update."""
        return self._auto is not None

    def adjust(self, loss_nats: float) -> None:
        """Take the loss of an update on the data, after it.

        Raises:
            DivergedError: if it is not finite.
        """
        if self._auto is not None:
            self._auto.update(loss_nats)

    def add_penalty(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add the penalty's gradient, unless the proximal step does its work."""
        if self._way == "subgradient":
            add_group_lasso_gradient(parameters, gradients, layers=self._layers, strength=self.strength)

    def after_update(self, parameters: Mapping[str, Tensor], learning_rate: float) -> None:
        """Shrink the groups, if that is the way."""
        if self._way == "proximal":
            proximal_step(parameters, self._layers, learning_rate * self.strength)

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {} if self._auto is None else self._auto.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict()` of one with the same rule returned."""
        if self._auto is not None:
            self._auto.load_state_dict(state)
