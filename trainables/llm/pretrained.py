"""A broad language model that others trained: a folder of transformers, a GGUF file, or a name on a hub.

Nothing of it is executed or unpickled. A study reads it once and keeps it in its storage, by its name: what the name stands
for later, on the hub or on another node, changes nothing for the study.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.packed_files import pack_files
from trainables.llm.shared_model import pack_model
from trainables.llm.tokens import IDS_FILE, own_tokenizer
from trainables.shared import Recipe

_VERSION = 1
"""Of the code below: another number reads models anew."""
_GGUF = ".gguf"
_REMEDY = "name a folder of transformers, a .gguf file, or a model of the hub that this machine reaches"

_Loaded = TypeVar("_Loaded")


def model_recipe(name: str, revision: str = "") -> Recipe:
    """How a pretrained model comes into a study: `trainables.llm.shared_model.unpack_model` builds what this makes.

    Args:
        name: a folder, a file that ends in .gguf, or a name on the hub.
        revision: of a model of the hub; empty for its newest.
    """

    def make(device: torch.device) -> dict[str, Tensor]:
        return pack_model(load_pretrained(name, revision))

    ingredients = {"version": _VERSION, "name": name, "revision": revision}
    return Recipe(name="pretrained", ingredients=ingredients, make=make, check=lambda: check_pretrained(name, revision))


def tokenizer_recipe(name: str, revision: str = "") -> Recipe:
    """How its tokenizer comes into a study: as its files, packed, and the ids of its start and end."""

    def make(device: torch.device) -> dict[str, Tensor]:
        return pack_files(_tokenizer_files(name, revision))

    return Recipe(name="tokenizer", ingredients={"version": _VERSION, "name": name, "revision": revision}, make=make)


def for_transformers(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of which `AutoTokenizer.from_pretrained` makes it."""
    return {name: data for name, data in files.items() if name != IDS_FILE}


def load_pretrained(name: str, revision: str = "") -> nn.Module:
    """Load a causal language model in float32, on the CPU.

    Raises:
        ValueError: if there is none of that name, or it is not one that transformers builds.
        ImportError: if it is a GGUF file and the library gguf is not installed.
    """
    from transformers import AutoModelForCausalLM

    from trainables.llm.files import load
    from trainables.llm.stock import RECORD

    config = Path(name) / "config.json"
    if config.is_file() and RECORD in json.loads(config.read_text()):
        return load(name)  # one that was narrowed before
    options = _options(name, revision) | {"dtype": torch.float32}
    if not name.endswith(_GGUF):
        options["use_safetensors"] = True  # other formats would be unpickled
    model: Any = _told(name, lambda: AutoModelForCausalLM.from_pretrained(_place(name), **options))
    _forget_quantization(model)
    loaded: nn.Module = model.eval()
    return loaded


def check_pretrained(name: str, revision: str = "") -> None:
    """See whether a model is there, and of a structure that can be narrowed, without reading its weights.

    Of a GGUF file only that it is one.

    Raises:
        ValueError, ImportError: as `load_pretrained`; naming the module that is not understood.
    """
    if name.endswith(_GGUF):
        with Path(_existing(name)).open("rb") as file:
            require(file.read(4) == b"GGUF", f"{name} must be a GGUF file", "another", _REMEDY)
        _require_gguf(name)
        return
    from transformers import AutoConfig

    from trainables.llm.dissection import dissect
    from trainables.llm.stock import build_on_meta

    config = _told(name, lambda: AutoConfig.from_pretrained(name, **_options(name, revision)))
    dissect(build_on_meta(config))


def _tokenizer_files(name: str, revision: str) -> dict[str, bytes]:
    from transformers import AutoTokenizer

    tokenizer: Any = _told(name, lambda: AutoTokenizer.from_pretrained(_place(name), **_options(name, revision)))
    own = own_tokenizer(tokenizer)
    require(own.json != "", f"the tokenizer of {name} must have a tokenizer.json", "none", "convert it to a fast tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    ids = json.dumps({"end_id": own.end_id, "start_id": own.start_id})
    return files | {"tokenizer.json": own.json.encode(), IDS_FILE: ids.encode()}


def _options(name: str, revision: str) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": False}
    if name.endswith(_GGUF):
        _require_gguf(name)
        return options | {"gguf_file": Path(_existing(name)).name}
    return options | ({"revision": revision} if revision else {})


def _place(name: str) -> str:
    """Where transformers looks."""
    return str(Path(name).parent) if name.endswith(_GGUF) else name


def _existing(name: str) -> str:
    require(Path(name).is_file(), "a GGUF file must be there", name, _REMEDY)
    return name


def _require_gguf(name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"the library gguf must be installed to read {name}, but is not; pip install gguf")


def _told(name: str, load: Callable[[], _Loaded]) -> _Loaded:
    """Load, and tell in a sentence what went wrong."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{name!r} must be a causal language model, but got: {first}; {_REMEDY}") from error


def _forget_quantization(model: Any) -> None:
    """A GGUF file's numbers are plain floats by now, though transformers would not save them."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
