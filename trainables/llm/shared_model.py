"""A language model as the tensors that trials share: its own, and the files that describe it."""

from collections.abc import Mapping

from torch import Tensor, nn

from trainables.llm.files import build, description, tensors_of
from trainables.llm.packed_files import FILES, pack_files, unpack_files


def pack_model(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, those that are tied once, and its config's files."""
    return tensors_of(model) | pack_files(description(model))


def unpack_model(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a model of copies of its tensors: on the CPU, outside training mode.

    Copies, for it may be trained, and for a kernel's last bits may depend on where in a file a tensor lies.
    """
    own = {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith(FILES)}
    return build(unpack_files(tensors), own)
