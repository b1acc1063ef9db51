"""A model's passport: what it was made of, with what, and what was measured of it, in two files beside it.

`passport.json` names every other file of the folder with its digest. `passport.tensors` holds evidence for an evaluation, the
model's answers to a probe, and which units were kept; it is safetensors, under a name that no loader of weights takes for a
part of the model.

The seal, a digest of all fields, shows a careless edit. It is no signature: whoever edits a field can make it anew, and then
only what the model itself contradicts is noticed (`trainables.verification`).
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trainables.experiment import Account, Experiment, Removal
from trainables.laws import require
from trainables.shared import Recipe

PASSPORT_FILE = "passport.json"
PROOF_FILE = "passport.tensors"
EVIDENCE, PROBE, KEPT = "evidence/", "probe/", "kept/"
"""What names in `passport.tensors` begin with."""
FORMAT = 1
MAX_PROBE_BYTES = 2**20
MAX_PASSPORT_BYTES = 2**26

_PACKAGES = ("torch", "numpy", "safetensors", "narrow-study")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How a model came about, beside its config.

    Attributes:
        metrics: as they were reported of it.
        account: what its experiment tells of it.
        inputs: as `inputs_of` gives them.
        device: that it was trained on.
        candidate: its number; None for a trial's own model.
    """

    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    account: Account = dataclasses.field(default_factory=Account)
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    candidate: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a model of an experiment says of itself.

    Attributes:
        probe: as `Experiment.probe` gave it.
        parameters: how many numbers the rebuilt model has; None if that could not be told.
    """

    probe: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    parameters: int | None = None


def inputs_of(recipes: Mapping[str, Recipe], digests: Mapping[str, str]) -> dict[str, Any]:
    """What a model was made from: each recipe with its ingredients, and the digest of what it made, as far as it is known."""
    return {
        name: {"key": recipe.key, "digest": digests.get(recipe.key), **json.loads(recipe.canonical)}
        for name, recipe in recipes.items()
    }


@torch.no_grad()
def ask(experiment_class: type[Experiment], config: Any, model: Any) -> Answers:
    """Ask a rebuilt model for what is kept to know it again.

    Raises:
        ValueError: if the probe is too large.
    """
    probe = {name: tensor.detach().cpu().contiguous() for name, tensor in experiment_class.probe(config, model).items()}
    size = sum(tensor.nbytes for tensor in probe.values())
    law = f"a probe must have at most {MAX_PROBE_BYTES} bytes"
    require(size <= MAX_PROBE_BYTES, law, size, "ask for fewer inputs, or keep some of the outputs")
    return Answers(probe=probe, parameters=num_parameters(model))


def num_parameters(model: Any) -> int | None:
    """Numbers of a model, or of several in a list or dict, shared ones counted once; None of anything else."""
    tensors = list(_tensors_in(model))
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values()) if tensors else None


def _tensors_in(model: Any) -> Iterator[Tensor]:
    if isinstance(model, torch.nn.Module):
        yield from model.parameters()
    elif isinstance(model, Tensor):
        yield model
    elif isinstance(model, list | tuple | Mapping):
        for part in model.values() if isinstance(model, Mapping) else model:
            yield from _tensors_in(part)


def passport_files(
    name: str, experiment_class: type[Experiment], config: Any, files: Mapping[str, bytes], making: Making, answers: Answers
) -> dict[str, bytes]:
    """Write out a model's passport: its files, by name; the same model on the same machine has the same.

    Args:
        name: the experiment's.
        files: all others of the model's folder.
    """
    proof = _proof(making.account, answers)
    files = {**files, **proof}
    config_fields = dataclasses.asdict(config)
    fields = {
        "format": FORMAT,
        "experiment": name,
        "config": config_fields,
        "candidate": making.candidate,
        "metrics": dict(making.metrics),
        "parameters": answers.parameters,
        "seeds": {key: value for key, value in config_fields.items() if key == "seed" or key.endswith("_seed")},
        "inputs": dict(making.inputs),
        "read": {key: read if isinstance(read, str) else tensor_digest(read) for key, read in making.account.read.items()},
        "removal": _removal(making.account.removal),
        "environment": environment(experiment_class.libraries, making.device),
        "commit": commit_of(getattr(sys.modules.get(experiment_class.__module__), "__file__", None)),
        "files": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(files.items())},
    }
    return {**proof, PASSPORT_FILE: sealed(fields)}


def _proof(account: Account, answers: Answers) -> dict[str, bytes]:
    """The file of tensors, by its name; none where there is nothing to keep."""
    kept = {} if account.removal is None else account.removal.kept
    groups = {EVIDENCE: account.evidence, PROBE: answers.probe, KEPT: kept}
    tensors = {prefix + key: tensor for prefix, group in groups.items() for key, tensor in group.items()}
    own = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}  # a file takes no views
    return {PROOF_FILE: safetensors.torch.save(own)} if own else {}


def _removal(removal: Removal | None) -> dict[str, Any] | None:
    """What a removal comes to; the units themselves are in `passport.tensors`."""
    if removal is None:
        return None
    counts = {key: [int(keep_H.sum()), keep_H.numel()] for key, keep_H in removal.kept.items()}
    kept, total = (sum(count[place] for count in counts.values()) for place in (0, 1))
    return {"score": removal.score, "sparsity": (total - kept) / max(1, total), "kept_of": counts}


def tensor_digest(tensor: Tensor) -> str:
    """The sha256 of a tensor's type, shape and numbers."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(repr((str(plain.dtype), tuple(plain.shape))).encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def environment(libraries: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """What numbers may depend on beside the code: versions, processor, threads, device."""
    versions = {package: _version(package) for package in (*_PACKAGES, *libraries)}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _processor() -> str:
    """The processor's own name, which platform.processor() does not tell on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


@functools.cache
def commit_of(file: str | None) -> str | None:
    """Commit of the checkout that a file of code is in, `-dirty` with uncommitted changes; None outside git.

    Asked once by a worker: of the code that it runs, which on a cluster need not be what the study was launched with.
    """
    if file is None:
        return None
    command = ["git", "-C", os.path.dirname(file), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def seal_of(fields: Mapping[str, Any]) -> str:
    """The digest of all fields but the seal itself."""
    content = {name: value for name, value in fields.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(fields: Mapping[str, Any]) -> bytes:
    """A passport's file, its seal made anew."""
    plain = json.loads(json.dumps(fields))  # as it will be read: lists for tuples
    return json.dumps({**plain, "seal": seal_of(plain)}, indent=2).encode()


def read_passport(folder: str | Path) -> dict[str, Any]:
    """Read the passport of a model's folder on this machine; whether it is true, `trainables.verification` says.

    Raises:
        ValueError: if there is none, or none of this format.
    """
    law = f"a model folder must hold a {PASSPORT_FILE} of format {FORMAT}"
    path = Path(folder) / PASSPORT_FILE
    require(
        path.is_file() or not path.exists(), law, "something that is no file", "download the model again"
    )  # a pipe never ends
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MAX_PASSPORT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{law}, but {error}; download the model again, or train it again if it is older") from error
    found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
    require(found == FORMAT, law, repr(found), "verify it with the version that wrote it")
    return dict(fields)


def add_origin(folder: str | Path, origin: Mapping[str, Any]) -> None:
    """Note in a passport where a model was found, such as its study, trial and run, and seal it again.

    Raises:
        ValueError: if there is no passport, or its seal is broken already.
    """
    fields = read_passport(folder)
    law = f"{PASSPORT_FILE} must be as it was sealed before anything is added to it"
    require(fields.get("seal") == seal_of(fields), law, "another content", "download the model again")
    path = Path(folder) / PASSPORT_FILE
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(sealed({**fields, "origin": dict(origin)}))
    partial.replace(path)
