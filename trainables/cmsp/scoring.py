"""Score the hidden neurons of one network by what they matter for a task.

Axes: B samples, I inputs, H hidden units.
"""

from torch import Tensor

from trainables.cmsp.networks import Shape
from trainables.cmsp.task import Batches, Code, Task
from trainables.pruning.scores import SCORES
from trainables.pruning.units import Tensors
from trainables.randomness import generator, stream_keys
from trainables.relu_networks import CrossEntropy


def score_neurons(
    kind: str, task: Task, shape: Shape, tensors: Tensors, code: Code, *, num_samples: int, seed: int
) -> list[Tensor]:
    """Score one network's hidden neurons by a task, on one batch.

    Args:
        kind: a name of `trainables.pruning.scores.SCORES`.
        tensors: as `networks.split` names them, without the axis P.
        seed: the network's; the batch and any randomness come from streams of it.

    Returns:
        score_H of each hidden layer, at least 0.

    Source: arXiv:2505.15811, Fig 3: one batch of 2000 samples of the scored task, the same for all neurons.
    """
    device = tensors["layer0.weight"].device
    key_P = stream_keys([(seed, "scores", *code)], device)
    x_PBI, y_PB = Batches(task, {code: num_samples}, key_P).draw(0)
    loss = CrossEntropy(x_PBI[0, :, : task.num_inputs], y_PB[0].long())
    return SCORES[kind](tensors, shape.neurons, [loss], generator(seed, "random scores"))
