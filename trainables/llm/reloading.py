"""Check that saved models are what they were: reloaded in a fresh process, they must give the same logits."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.laws import require
from trainables.llm.files import needs_code
from trainables.llm.observation import evaluating

TOLERANCE = 1e-5
"""How far logits may be from those before saving."""

_Answer = tuple[dict[str, Any], Tensor | None]
"""What was wrong with a folder, and the logits, if it came to that."""


def check_reload(folder: str | Path, model: nn.Module, token_BT: Tensor) -> float:
    """Reload a folder with transformers in a fresh process, and compare.

    Args:
        model: what was saved there.
        token_BT: tokens to compare the logits of.

    Returns:
        largest absolute difference of a logit.

    Raises:
        ValueError: if the model cannot be loaded, keys are missing or unexpected, or logits differ by more than 1e-5.
    """
    return check_reloads([(folder, model)], token_BT)[0]


def check_reloads(saved: Sequence[tuple[str | Path, nn.Module]], token_BT: Tensor) -> list[float]:
    """Do for several models what `check_reload` does for one, in one process, whose start takes seconds."""
    token_BT = token_BT.to(next(saved[0][1].parameters()).device)
    answers = _answers([Path(folder).absolute() for folder, _ in saved], token_BT)
    return [_error(folder, model, token_BT, answer) for (folder, model), answer in zip(saved, answers, strict=True)]


def _error(folder: str | Path, model: nn.Module, token_BT: Tensor, answer: _Answer) -> float:
    """How far a reloaded model is from the saved one; a sentence if that is too far, or it is not all there."""
    faults, found_BTV = answer
    law = f"{folder} must load in a fresh process, with every tensor of its model and no other"
    require(not faults and found_BTV is not None, law, faults, "do not use the folder")
    assert found_BTV is not None
    with evaluating(model):
        expected_BTV: Tensor = model(token_BT, use_cache=False).logits.cpu()
    is_alike = expected_BTV.shape == found_BTV.shape
    error = float((expected_BTV - found_BTV).abs().max().nan_to_num(torch.inf)) if is_alike else torch.inf
    law = f"{folder} must give the logits of the model that was saved there, to {TOLERANCE}"
    require(error <= TOLERANCE, law, f"a difference of {error:.2g}", "do not use the folder")
    return error


def _answers(folders: Sequence[Path], token_BT: Tensor) -> list[_Answer]:
    """What a fresh process makes of every folder."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        save_file({"tokens": token_BT.cpu().contiguous()}, place / "tokens")
        task = {
            "folders": list(map(str, folders)), "code": [needs_code(folder) for folder in folders],
            "device": str(token_BT.device), "tokens": str(place / "tokens"), "results": name,
        }  # fmt: skip
        # Without network, and with a cache of its own: the modules of all folders have one name.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
        script = Path(__file__).with_name("fresh_process.py")
        command = [sys.executable, "-P", str(script)]  # -P: files beside the script must not hide those of others
        result = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment)
        law = "a fresh process must be able to reload models"
        require(result.returncode == 0, law, result.stderr[-2000:].strip(), "see the error")
        return [_answer(place, index) for index in range(len(folders))]


def _answer(place: Path, index: int) -> _Answer:
    faults = json.loads((place / f"{index}.json").read_text())
    logits = place / f"{index}.safetensors"
    return faults, load_file(logits)["logits"] if logits.exists() else None
