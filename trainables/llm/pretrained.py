"""A broad language model that others trained: a folder of transformers, a GGUF file, or a name on a hub.

Nothing of it is executed or unpickled. A study reads it once and keeps it in its storage, by its name: what the name stands
for later, on the hub or on another node, changes nothing for the study.
"""

import importlib.util
import json
import tempfile
import textwrap
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
_LONGEST = 400  # characters of what a library says

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

    def check() -> None:
        if not name.endswith(_GGUF):  # of 262144 tokens in one, a tokenizer is made in a minute
            _tokenizer_files(name, revision)

    ingredients = {"version": _VERSION, "name": name, "revision": revision}
    return Recipe(name="tokenizer", ingredients=ingredients, make=make, check=check)


def for_transformers(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of which `AutoTokenizer.from_pretrained` makes it."""
    return {name: data for name, data in files.items() if name != IDS_FILE}


def load_pretrained(name: str, revision: str = "") -> nn.Module:
    """Load a causal language model in float32, on the CPU.

    Raises:
        ValueError: if there is none of that name, it is not one that transformers builds, or tensors of it are missing.
        ImportError: if it is a GGUF file and the library gguf is not installed.
    """
    from transformers import AutoModelForCausalLM

    from trainables.llm.files import load
    from trainables.llm.stock import RECORD

    config = Path(name) / "config.json"
    if config.is_file() and RECORD in json.loads(config.read_text()):
        return load(name).float()  # one that was narrowed before
    options = _options(name, revision) | {"dtype": torch.float32}
    if not name.endswith(_GGUF):
        options["use_safetensors"] = True  # other formats would be unpickled
    law, place = f"{name!r} must be a causal language model", _place(name)
    found: Any = _told(law, lambda: AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options))
    model, loading = found
    missing = sorted(loading["missing_keys"])  # transformers would draw them
    require(not missing, f"{name!r} must hold all tensors of its model", f"none of {', '.join(missing)}", _REMEDY)
    _forget_quantization(model)
    loaded: nn.Module = model.eval()
    return loaded


def check_pretrained(name: str, revision: str = "") -> None:
    """See whether a model is there, and of a structure that can be narrowed, without reading its weights.

    Of a GGUF file only that it is one; of a folder also that there are weights.

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

    is_there = Path(name).exists() or not Path(name).is_absolute()  # or else it may be on the hub
    require(is_there, "a pretrained model must be there", name, _REMEDY)
    law, options = f"{name!r} must be a causal language model", _options(name, revision)
    config = _told(law, lambda: AutoConfig.from_pretrained(name, **options))
    law = f"{name!r} must be of a structure that can be narrowed"
    _told(law, lambda: dissect(build_on_meta(config)), passing=ValueError)  # which says what is not understood
    has_weights = not Path(name).is_dir() or any(Path(name).glob("*.safetensors"))
    require(has_weights, f"the folder {name} must hold *.safetensors", "none", "save the model with save_pretrained")


def _tokenizer_files(name: str, revision: str) -> dict[str, bytes]:
    from transformers import AutoTokenizer

    law, options = f"{name!r} must have a tokenizer that transformers reads", _options(name, revision)
    tokenizer: Any = _told(law, lambda: AutoTokenizer.from_pretrained(_place(name), **options))
    own = own_tokenizer(tokenizer, end_id=_end_id(tokenizer, name, options))
    require(own.json != "", f"the tokenizer of {name} must have a tokenizer.json", "none", "convert it to a fast tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    ids = json.dumps({"end_id": own.end_id, "start_id": own.start_id})
    return files | {"tokenizer.json": own.json.encode(), IDS_FILE: ids.encode()}


def _end_id(tokenizer: Any, name: str, options: Mapping[str, Any]) -> int | None:
    """The end token that the model's config names, where its tokenizer names none."""
    if tokenizer.eos_token_id is not None:
        return None
    from transformers import AutoConfig

    law = f"{name!r} must be a causal language model"
    end_id = getattr(_told(law, lambda: AutoConfig.from_pretrained(_place(name), **options)), "eos_token_id", None)
    first = end_id[0] if isinstance(end_id, list) and end_id else end_id
    return first if isinstance(first, int) else None


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
    missing = [library for library in ("gguf", "accelerate") if importlib.util.find_spec(library) is None]
    if missing:
        libraries = " and ".join(missing)
        raise ImportError(f"{libraries} must be installed to read {name}, but is not; pip install {' '.join(missing)}")


def _told(law: str, load: Callable[[], _Loaded], *, passing: type[Exception] = ImportError) -> _Loaded:
    """Load, and tell in a sentence what went wrong, unless it is out of memory or of a kind that tells enough by itself."""
    try:
        return load()
    except (MemoryError, passing):
        raise
    except Exception as error:  # a stranger's file may break a library anywhere, and its errors are not all ValueErrors
        got = textwrap.shorten(f"{error}" or type(error).__name__, _LONGEST)
        raise ValueError(f"{law}, but got: {got}; {_REMEDY}") from error


def _forget_quantization(model: Any) -> None:
    """A GGUF file's numbers are plain floats by now, though transformers would not save them."""
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
