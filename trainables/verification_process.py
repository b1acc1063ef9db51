"""What a clean process does to verify models: rebuild each, count its parameters, ask it, measure it.

Run by `trainables.verification`. Reads one JSON object from stdin, `{"folders": [...], "trusted": [...], "device", "results"}`,
and writes the checks of each folder as JSON to the folder `results`: 0.json, 1.json, ...
"""

import dataclasses
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainables.experiment import Experiment, MissingEvidenceError
from trainables.model_files import TENSORS_FILE, further_files
from trainables.passport import EVIDENCE, PROBE, PROOF_FILE, Answers, ask, environment, read_passport
from trainables.registry import load_named
from trainables.storage import Folder
from trainables.verification import Check, judged

PROBE_TOLERANCE = 1e-5
"""How far answers may be, as a share of the largest, on another machine; here they must be the same."""
TOLERANCE_HERE, TOLERANCE_ELSEWHERE = 1e-5, 1e-4
"""How far a metric may be, as a share of it; elsewhere one answer of ten thousand may come out otherwise."""
_LEAST = 1e-7  # a difference that no metric shows
_MOST_THREADS = 1024


def main() -> None:
    """Do what is asked on stdin."""
    task = json.load(sys.stdin)
    for place, folder in enumerate(task["folders"]):
        found = list(_whatever_happens(check_model(Path(folder), task["trusted"], torch.device(task["device"]))))
        (Path(task["results"]) / f"{place}.json").write_text(json.dumps([dataclasses.asdict(check) for check in found]))


def _whatever_happens(checks: Iterator[Check]) -> Iterator[Check]:
    """Checks, and a refusal where they break down: a passport may have been edited in any way, and others wait their turn."""
    try:
        yield from checks
    except Exception as error:
        yield judged("passport", False, "a passport must have every field, each of its kind", _short(error), passed="")


def check_model(folder: Path, trusted: Collection[str], device: torch.device) -> Iterator[Check]:
    """All that needs the model itself; what makes the rest pointless ends it.

    Args:
        folder: with a passport whose seal and files hold.
    """
    passport = read_passport(folder)
    try:
        experiment_class = load_named(passport["experiment"], trusted)
    except ValueError as error:
        yield Check(name="experiment", outcome="refused", told=str(error))
        return
    told = passport["environment"]
    if isinstance(told.get("threads"), int) and 1 <= told["threads"] <= _MOST_THREADS:
        torch.set_num_threads(told["threads"])  # sums are rounded by how they are shared out
    here = environment(experiment_class.libraries, torch.device("cpu"))
    others = sorted(name for name in here.keys() | told.keys() if name != "device" and here.get(name) != told.get(name))
    try:
        config = experiment_class.Config(**passport["config"])
        model = experiment_class.rebuild(config, _copies(folder / TENSORS_FILE), further_files(Folder(folder)))
        answers = ask(experiment_class, config, model)
    except Exception as error:  # a broken model may break a library anywhere
        yield judged("rebuild", False, "the model must be rebuilt from its files", _short(error), passed="")
        return
    yield Check(name="rebuild", outcome="passed", told=f"from safetensors, by {experiment_class.__name__}; {_where(others)}")
    proof = _copies(folder / PROOF_FILE) if (folder / PROOF_FILE).exists() else {}
    yield _check_parameters(passport["parameters"], answers)
    yield _check_probe(_group(proof, PROBE), answers.probe, is_same_place=not others)
    is_same_place = not others and told["device"] == device.type == "cpu"
    tolerance = TOLERANCE_HERE if is_same_place else TOLERANCE_ELSEWHERE
    yield from _check_metrics(experiment_class, config, model, passport["metrics"], _group(proof, EVIDENCE), device, tolerance)


def _copies(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each where memory begins anew: a kernel's last bits may depend on where in a file one lies."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _where(others: list[str]) -> str:
    return "machine and versions as when it was saved" if not others else f"other than when it was saved: {', '.join(others)}"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _check_parameters(told: int | None, answers: Answers) -> Check:
    if told is None or answers.parameters is None:
        return Check(name="parameters", outcome="not checked", told="because nothing in it can be counted")
    law = "the model must have as many parameters as its passport says"
    return judged("parameters", told == answers.parameters, law, f"{answers.parameters} for {told}", passed=f"{told}")


def _check_probe(saved: Mapping[str, Tensor], found: Mapping[str, Tensor], *, is_same_place: bool) -> Check:
    if not saved:
        return Check(name="probe", outcome="not checked", told="because its experiment has no probe")
    law = "the rebuilt model must answer the probe as when it was saved"
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in found.items()}:
        return judged("probe", False, law, "other names or shapes", passed="")
    error = max(map(_error, saved.values(), (found[name] for name in saved)))
    tolerance = 0.0 if is_same_place else PROBE_TOLERANCE
    count = sum(tensor.numel() for tensor in saved.values())
    law += f", to {tolerance:g} of the largest" if tolerance else ", exactly"
    told = f"{count} answers, {'all the same' if error == 0 else f'to {error:.1e} of the largest'}"
    return judged("probe", error <= tolerance, law, f"a difference of {error:.1e}", passed=told)


def _error(saved: Tensor, found: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite where one is not finite and the other is."""
    if torch.equal(saved.nan_to_num(), found.nan_to_num()) and torch.equal(saved.isnan(), found.isnan()):
        return 0.0
    difference = (saved.double() - found.double()).abs().max() / saved.double().abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(math.inf))


def _check_metrics(
    experiment_class: type[Experiment],
    config: Any,
    model: Any,
    told: Mapping[str, float],
    evidence: Mapping[str, Tensor],
    device: torch.device,
    tolerance: float,
) -> Iterator[Check]:
    """Measure what the model alone determines, and name what it does not."""
    if not told:
        yield Check(name="metrics", outcome="not checked", told="because the passport tells none")
        return
    try:
        found = experiment_class.evaluate(config, model, evidence, device=device)
    except MissingEvidenceError as error:
        yield Check(name="metrics", outcome="not checked", told=f"because {error}")
        return
    except Exception as error:
        yield judged("metrics", False, "the evaluation must run again", _short(error), passed="")
        return
    for name, value in found.items():
        yield _check_metric(name, told.get(name), value, tolerance)
    rest = sorted(told.keys() - found.keys())
    if rest:
        yield Check(name="other metrics", outcome="not checked", told=f"because the model alone does not tell {', '.join(rest)}")


def _check_metric(name: str, told: float | None, found: float, tolerance: float) -> Check:
    is_close = told is not None and math.isclose(found, told, rel_tol=tolerance, abs_tol=_LEAST)
    law = f"{name} must be what the model is measured to have, to {tolerance:g} of it"
    passed = f"{found!r}, measured again" if found == told else f"{told!r}, measured again as {found!r}"
    return judged(f"metric {name}", is_close, law, f"{told} in the passport and {found} measured", passed=passed)


if __name__ == "__main__":
    main()
