"""Reload saved models as a stranger would: in a process of its own, with transformers and nothing of ours.

Reads one JSON object from stdin, `{"folders": [...], "code": [...], "device": ..., "tokens": ..., "results": ...}`. For each
folder it writes to the folder `results` a JSON object of faults, keys that did not fit or an error, and the logits, if any.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    """Reload every folder and write down what came of it."""
    torch.set_num_threads(1)
    task = json.load(sys.stdin)
    tokens = load_file(task["tokens"])["tokens"].to(task["device"])
    for place, (folder, needs_code) in enumerate(zip(task["folders"], task["code"], strict=True)):
        try:
            logits, faults = reload(folder, needs_code, tokens)
            save_file({"logits": logits}, Path(task["results"]) / f"{place}.safetensors")
        except Exception as error:  # whatever it is, it is what the folder came to
            faults = {type(error).__name__: str(error)}
        (Path(task["results"]) / f"{place}.json").write_text(json.dumps(faults))


def reload(folder: str, needs_code: bool, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Give the logits of one folder's model, and what transformers tells of keys that did not fit."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=needs_code, output_loading_info=True)
    model, told = loaded
    with torch.no_grad():
        logits = model.to(tokens.device).eval()(tokens, use_cache=False).logits
    return logits.cpu().contiguous(), {fault: sorted(map(str, keys)) for fault, keys in told.items() if keys}


if __name__ == "__main__":
    main()
