import pytest

pytest.importorskip("transformers")

from tiny_models import CONFIGS, GATED, RMS_FAMILIES, parts_of, tiny
from transformers import LlamaConfig, Phi3Config

from trainables.llm.anatomy import neurons, residual
from trainables.llm.sizes import Counter
from trainables.llm.surgery import remove
from trainables.pruning.selection import num_removed

LLAMA_3_2_1B = LlamaConfig(
    hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
    vocab_size=128_256, tie_word_embeddings=True,
)  # fmt: skip


def test_every_size_of_the_papers_figure_6_is_reproduced():
    count = Counter(LLAMA_3_2_1B)
    sizes = {
        (0.0, 0.0): 1_235_814_400,
        (0.5, 0.2): 666_773_063,
        (0.5, 0.5): 416_580_608,
        (0.8, 0.5): 295_786_496,
        (0.9, 0.5): 255_521_792,
        (0.95, 0.5): 235_387_904,
        (0.8, 0.8): 118_430_140,
        (0.9, 0.9): 51_154_265,
    }
    for (of_neurons, of_dimensions), size in sizes.items():
        kept, dimensions = 131_072 - num_removed(131_072, of_neurons), 2048 - num_removed(2048, of_dimensions)
        assert count(dimensions=dimensions, neurons_kept=kept) == dimensions * (210_209 + 3 * kept) == size


@pytest.mark.parametrize("family", RMS_FAMILIES)
def test_counts_are_those_of_models_that_were_cut(family):
    model, anatomy, _ = tiny(family)
    assert Counter(model.config)(dimensions=32, neurons_kept=80) == model.num_parameters()
    remove(model, anatomy, *parts_of(family, "both, unlike"))
    tensors = dict(model.named_parameters())
    kept = sum(units.count for units in neurons(anatomy, tensors))
    found = Counter(CONFIGS[family]())(dimensions=residual(anatomy, tensors).count, neurons_kept=kept)
    assert found == model.num_parameters()


def test_what_a_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="33 of 32 dimensions and 80 of 80 neurons"):
        Counter(CONFIGS["llama"]())(dimensions=33, neurons_kept=80)
    with pytest.raises(ValueError, match="32 of 32 dimensions and 81 of 80 neurons"):
        Counter(CONFIGS["llama"]())(dimensions=32, neurons_kept=81)
    with pytest.raises(ValueError, match="must be of a causal language model that transformers has, but got object"):
        Counter(object())(dimensions=1, neurons_kept=1)
    with pytest.raises(ValueError, match=r"model\.layers\.0"):
        Counter(Phi3Config(**GATED))
