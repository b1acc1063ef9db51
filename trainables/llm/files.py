"""A pruned language model as a folder: safetensors and a config, and one small module of code if its MLPs differ in width.

`load` never executes a file of the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from trainables.laws import require
from trainables.llm.resizing import set_sizes, sizes_of
from trainables.llm.stock import RECORD, build_on_meta, stock_config

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TENSORS_FILE = "model.safetensors"
CODE_FILE = "modeling_narrowed.py"

_WHOLE = f"a model's folder must hold {CONFIG_FILE} and {TENSORS_FILE}, whole"
_NOT_FROM_A_FOLDER = {
    "auto_map", RECORD, "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "use_kernels",
}  # fmt: skip
"""Fields that could make transformers run what a stranger chose."""

_CODE = '''"""{base} with modules of sizes of their own, listed in the config's field "{record}"."""

import torch
from transformers import {base}


class Narrowed{base}({base}):
    def __init__(self, config):
        super().__init__(config)
        for name, sizes in config.{record}.items():
            module = self.get_submodule(name)
            for attribute, value in sizes["numbers"].items():
                setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
            for attribute, shape in sizes["shapes"].items():
                old = getattr(module, attribute)
                setattr(module, attribute, torch.nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device)))
        self.tie_weights()
'''


def save(model: nn.Module, folder: str | Path) -> bool:
    """Write a model of transformers that may have lost units.

    Where all sizes are those of a config, `AutoModelForCausalLM.from_pretrained(folder)` loads it as its stock class. Where
    MLPs differ in width, or the class refuses the width, the folder holds a module of code as well, and
    `from_pretrained(folder, trust_remote_code=True)` or `load` loads it. The config comes last: a folder without one is
    unfinished.

    Returns:
        whether the folder needs its code.

    Raises:
        ValueError: if the model has parameters that its stock class does not have.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = description(model)
    for name in (CONFIG_FILE, CODE_FILE):
        (place / name).unlink(missing_ok=True)
    safetensors.torch.save_file(tensors_of(model), place / TENSORS_FILE, metadata={"format": "pt"})
    for name, data in files.items():
        (place / name).write_bytes(data)
    return CODE_FILE in files


def description(model: nn.Module) -> dict[str, bytes]:
    """The files of a model's folder beside its tensors, by name: code if it needs any, and the config last.

    Raises:
        ValueError: if the model has parameters that its stock class does not have.
    """
    config, built = stock_config(model.config), build_on_meta(model.config)
    base, record = type(built).__name__, _unlike(model, built)
    config.architectures, config.dtype = [base], next(model.parameters()).dtype
    texts = {}
    if record:
        setattr(config, RECORD, record)
        config.auto_map = {"AutoModelForCausalLM": f"{Path(CODE_FILE).stem}.Narrowed{base}"}
        texts[CODE_FILE] = _CODE.format(base=base, record=RECORD)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        texts[GENERATION_FILE] = generation.to_json_string()
    texts[CONFIG_FILE] = config.to_json_string()
    return {name: text.encode() for name, text in texts.items()}


def load(folder: str | Path) -> nn.Module:
    """Build a model that `save` wrote, on the CPU, without executing any file of the folder.

    Returns:
        a model of the stock class, outside training mode; modules that lost units are smaller than its config says.

    Raises:
        ValueError: if files are missing or broken, or tensors are missing, left over or of other shapes; these are named.
    """
    place = Path(folder)
    try:
        files = {name: (place / name).read_bytes() for name in (CONFIG_FILE, GENERATION_FILE) if (place / name).exists()}
        tensors = safetensors.torch.load_file(place / TENSORS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{_WHOLE}, but got {error} in {place}; save it again") from error
    return build(files, tensors, source=str(place))


def build(files: Mapping[str, bytes], tensors: Mapping[str, Tensor], *, source: str = "a model's files") -> nn.Module:
    """Build a model of the files that describe it and of its tensors, which it then holds; see `load`.

    Args:
        files: as `description` gives them; code among them is not looked at.
        source: what they are, for messages.
    """
    fields = _fields(files, source)
    record = fields.get(RECORD, {})
    with no_init_weights(), torch.random.fork_rng(devices=[]):  # memory of weights is not touched before they are replaced
        model: nn.Module = AutoModelForCausalLM.from_config(_config(fields))  # type: ignore[no-untyped-call]
    set_sizes(model, record)
    _require_fitting(source, model, tensors)
    model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    if GENERATION_FILE in files:
        model.generation_config = GenerationConfig.from_dict(json.loads(files[GENERATION_FILE]))  # type: ignore[assignment]
    return model.eval()


def tokenizer_files(tokenizer_json: str) -> dict[str, bytes]:
    """The files of which `AutoTokenizer.from_pretrained` makes a tokenizer, by name.

    Args:
        tokenizer_json: the content of its tokenizer.json.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": tokenizer_json.encode(), "tokenizer_config.json": json.dumps(config).encode()}


def needs_code(folder: str | Path) -> bool:
    """Whether `from_pretrained` needs trust_remote_code=True for this folder."""
    return "auto_map" in json.loads((Path(folder) / CONFIG_FILE).read_text())


def _unlike(model: nn.Module, built: nn.Module) -> dict[str, Any]:
    """Sizes of the modules that are not as the stock class has them."""
    own, stock = dict(model.named_parameters()), dict(built.named_parameters())
    law = f"a {type(built).__name__} must be saved"
    require(own.keys() == stock.keys(), law, sorted(own.keys() ^ stock.keys()), "save models of transformers, as they are")
    places = dict.fromkeys(name.rpartition(".")[0] for name in own if own[name].shape != stock[name].shape)
    tied = [name for name, module in model.named_modules() if name not in places and _shares(module, model, places)]
    return {name: sizes_of(model.get_submodule(name)) for name in (*places, *tied)}


def _shares(module: nn.Module, model: nn.Module, places: dict[str, None]) -> bool:
    """Whether a module holds a parameter of one of these places."""
    held = {id(parameter) for place in places for parameter in model.get_submodule(place).parameters(recurse=False)}
    return any(id(parameter) in held for parameter in module.parameters(recurse=False))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, a shared one once, and the buffers that belong to a model's state, on the CPU."""
    names = dict(model.named_parameters())
    state = model.state_dict()
    shared = dict(model.named_parameters(remove_duplicate=False)).keys() - names.keys()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in shared}


def _fields(files: Mapping[str, bytes], source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files[CONFIG_FILE]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_WHOLE}, but got {type(error).__name__} ({error}) in {source}; save it again") from error


def _without_choices(fields: Any) -> Any:
    """Fields less those that could choose code, also of a config inside of a config."""
    if isinstance(fields, list):
        return [_without_choices(value) for value in fields]
    if not isinstance(fields, dict):
        return fields
    return {name: _without_choices(value) for name, value in fields.items() if name not in _NOT_FROM_A_FOLDER}


def _config(fields: dict[str, Any]) -> Any:
    """Build the config of a stock class from fields, less those that could choose code."""
    kind = fields.get("model_type")
    law = "config.json must name a model_type that transformers knows"
    require(isinstance(kind, str) and kind in CONFIG_MAPPING, law, kind, "update transformers, or save the model again")
    assert isinstance(kind, str)
    try:
        return CONFIG_MAPPING[kind].from_dict(_without_choices(fields))
    except Exception as error:  # the library's own validation errors are no ValueErrors
        raise ValueError(f"{CONFIG_FILE} must be one of {kind}, but got: {error}; save the model again") from error


def _require_fitting(place: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse missing, left over and misshapen tensors; what shares a tensor that is there is not missing."""
    wanted = model.state_dict()
    model.tie_weights()  # type: ignore[operator]
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    alias = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    missing = sorted(name for name in wanted if alias.get(name, name) not in tensors)
    left_over = sorted(tensors.keys() - wanted.keys())
    shapes = {
        name: f"{tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    law = f"{place} must hold exactly the tensors of its model"
    got = f"missing: {missing}, left over: {left_over}, of other shapes: {shapes}"
    require(not (missing or left_over or shapes), law, got, "save it again")
