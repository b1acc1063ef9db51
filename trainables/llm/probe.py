"""What a language model says of tokens that are always the same, in few numbers, to know it again.

Axes: B sequences, T tokens, V vocabulary, C some tokens of it.
"""

import torch
from torch import Tensor, nn

from trainables.llm.observation import evaluating
from trainables.randomness import draw_bytes

_SEQUENCES, _LENGTH, _ANSWERS = 2, 16, 256


def probe_logits(model: nn.Module) -> dict[str, Tensor]:
    """Logits of some tokens of the vocabulary, evenly spread, and the normaliser of all, so that each counts.

    Returns:
        `logits`, B x T x C, and `normaliser`, B x T; in nats.
    """
    rows = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    length = min(_LENGTH, getattr(model.config, "max_position_embeddings", None) or _LENGTH)
    word_N = draw_bytes(_SEQUENCES * length * 4, "probe").view(torch.int32).long()
    with evaluating(model):
        logits_BTV: Tensor = model((word_N % rows).view(_SEQUENCES, length), use_cache=False).logits.float()
    count = logits_BTV.shape[-1]
    chosen_C = torch.arange(min(count, _ANSWERS)) * count // min(count, _ANSWERS)
    return {"logits": logits_BTV[..., chosen_C], "normaliser": logits_BTV.logsumexp(-1)}
