"""Tiny random models in folders and GGUF files, with a tokenizer, as people who pretrain models leave them."""

import functools
import json

import torch
from narrowing_trials import LETTERS, texts_of
from tiny_models import CONFIGS, randomised
from transformers import AutoModelForCausalLM, LlamaConfig

from trainables.llm.files import save, tokenizer_files
from trainables.llm.tokens import END, train_tokenizer

VOCABULARY = 300
_HEADS = 4
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@functools.cache
def tokenizer():
    """Trained on the texts of narrowing_trials."""
    return train_tokenizer([text for domain in LETTERS for text in texts_of(domain)], VOCABULARY)


def config_of(family, **changes):
    """A tiny config with a row for every token."""
    config = CONFIGS[family]()
    for name, value in ({"vocab_size": VOCABULARY} | changes).items():
        setattr(config, name, value)
    return config


def write_folder(folder, config):
    """Write a random model of a config, and the tokenizer; returns the folder's name."""
    return write_model(folder, randomised(AutoModelForCausalLM.from_config(config)))


def write_model(folder, model):
    """Write a model, which may have lost units, and the tokenizer; returns the folder's name."""
    save(model, folder)
    for name, data in tokenizer_files(tokenizer().json).items():
        (folder / name).write_bytes(data)
    change_json(folder / "tokenizer_config.json", eos_token=END)
    return str(folder)


def change_json(path, **changes):
    """Give fields of a file other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_gguf(path):
    """Write a random Llama and the tokenizer as llama.cpp has them; returns the model."""
    import gguf

    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": _HEADS}
    config = LlamaConfig(vocab_size=VOCABULARY, **shape, max_position_embeddings=32, tie_word_embeddings=True, rms_norm_eps=1e-5)
    model = randomised(AutoModelForCausalLM.from_config(config))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(40)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32 // _HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    for name, weight in _gguf_tensors(model).items():
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer):
    content = json.loads(tokenizer().json)["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == END else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["merges"]])
    writer.add_eos_token_id(tokens.index(END))


def _gguf_tensors(model):
    """By the names of llama.cpp; queries and keys with the halves of each head's rotary pairs side by side."""
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = {"token_embd.weight": own["model.embed_tokens.weight"], "output_norm.weight": own["model.norm.weight"]}
    for block in range(2):
        for name, theirs in _GGUF_NAMES.items():
            weight = own[f"model.layers.{block}.{name}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = weight.view(_HEADS, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{block}.{theirs}.weight"] = weight
    return tensors


def tokens_of(seed=0):
    """Two sequences that every one of these models knows: token_BT."""
    return torch.randint(VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(seed))
