"""Is a model what its passport says? Its files are compared, then it is rebuilt, asked and measured in a clean process.

No file of the folder is unpickled or executed, and of the modules that it names only ours are imported, and those that its
reader trusts. What is shown is that files, model and metrics belong together, not who made them: the seal is no signature.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainables.model_files import RECIPE_FILE
from trainables.passport import PASSPORT_FILE, read_passport, sealed

Outcome = Literal["passed", "refused", "not checked"]

REMEDY = "do not use the folder, and download the model again"
_LONGEST = 2000  # characters of what a process that broke down says


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, such as "digests" or "metric accuracy".
        told: what was found; of a refusal a sentence with law, value and remedy.
    """

    name: str
    outcome: Outcome
    told: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What came of a model's folder."""

    folder: str
    experiment: str | None
    checks: tuple[Check, ...]

    @property
    def refused(self) -> list[Check]:
        """What does not hold."""
        return [check for check in self.checks if check.outcome == "refused"]

    @property
    def left_out(self) -> list[Check]:
        """What could not be checked, each with the reason."""
        return [check for check in self.checks if check.outcome == "not checked"]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is refused."""
        return not self.refused

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """(check, outcome, what was found), for a table."""
        return [(check.name, check.outcome, check.told) for check in self.checks]

    def to_json(self) -> dict[str, Any]:
        """`{folder, experiment, is_sound, checks: [{name, outcome, told}]}`."""
        checks = [dataclasses.asdict(check) for check in self.checks]
        return {"folder": self.folder, "experiment": self.experiment, "is_sound": self.is_sound, "checks": checks}

    def require_sound(self) -> None:
        """Refuse a model that was refused.

        Raises:
            ValueError: with the sentence of the first refusal.
        """
        for check in self.refused:
            raise ValueError(f"{self.folder}: {check.told}")


def verify_model(folder: str | Path, *, trusted: Collection[str] = (), device: str = "cpu") -> Verification:
    """Verify one model's folder, as `verify_models` does."""
    return verify_models([folder], trusted=trusted, device=device)[0]


def verify_models(folders: Sequence[str | Path], *, trusted: Collection[str] = (), device: str = "cpu") -> list[Verification]:
    """Verify models' folders on this machine; what is wrong with them is told, not raised.

    First come the seal and the files' digests; where they do not hold, nothing more is done. Then, in a clean process without a
    network, one for all folders, each model is rebuilt from its tensors, its parameters are counted, its answers to the probe
    are compared with those of the day it was saved, and what `Experiment.evaluate` finds is compared with the metrics. Answers
    must be the same where machine, versions and threads are, and elsewhere to 1e-5 of the largest; metrics to 1e-5 of each,
    elsewhere and after training on a GPU to 1e-4.

    Args:
        trusted: experiments of modules of your own, as `module:Class`, that may be imported if the passport names one. They
            are looked for where this process finds modules, but not in the folder.
        device: that the evaluation runs on; the probe runs on the CPU, where it was made.
    """
    verifications = [_verify_files(folder) for folder in folders]
    whole = [each.folder for each in verifications if each.is_sound]
    found = dict(zip(whole, _ask_clean_process(list(map(Path, whole)), trusted, device) if whole else [], strict=True))
    skipped = Check(
        name="model", outcome="not checked", told="because passport and files must hold before anything is made of them"
    )
    return [dataclasses.replace(each, checks=(*each.checks, *found.get(each.folder, [skipped]))) for each in verifications]


def _verify_files(folder: str | Path) -> Verification:
    """What can be seen of a folder without its model."""
    place = Path(folder)
    try:
        fields = read_passport(place)
    except ValueError as error:
        refusal = Check(name="passport", outcome="refused", told=str(error))
        return Verification(folder=str(folder), experiment=None, checks=(refusal,))
    checks = [_check_seal(place, fields), *_check_files(place, fields)]
    if all(check.outcome == "passed" for check in checks):
        checks.append(_check_recipe(place, fields))
    return Verification(folder=str(folder), experiment=str(fields.get("experiment")), checks=tuple(checks))


def judged(name: str, holds: bool, law: str, got: object, *, passed: str, remedy: str = REMEDY) -> Check:
    """A check as it came out: `passed` where it holds, else the sentence of the law."""
    return Check(name=name, outcome="passed" if holds else "refused", told=passed if holds else f"{law}, but got {got}; {remedy}")


def _check_seal(place: Path, fields: Mapping[str, Any]) -> Check:
    """Compare the file as a whole, so that a space more is noticed, too."""
    holds = (place / PASSPORT_FILE).read_bytes() == sealed(fields)
    law = f"{PASSPORT_FILE} must be as it was sealed"
    return judged("seal", holds, law, "another content", passed="as it was sealed, which is no signature")


def _check_files(place: Path, fields: Mapping[str, Any]) -> list[Check]:
    named = fields["files"] if isinstance(fields.get("files"), dict) else {}
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_symlink() or not path.is_dir()}
    missing, unnamed = sorted(named.keys() - there), sorted(there - named.keys() - {PASSPORT_FILE})
    law = f"a model folder must hold {PASSPORT_FILE} and exactly the files that it names"
    got = f"missing: {', '.join(missing) or 'none'}; not named: {', '.join(unnamed) or 'none'}"
    is_whole = RECIPE_FILE in named and not missing and not unnamed
    whole = judged("files", is_whole, law, got, passed=f"{len(named)} files, each named")
    changed = sorted(name for name in named.keys() & there if _digest(place / name) != named[name])
    law = f"every file must have the digest that {PASSPORT_FILE} tells"
    digests = judged("digests", not changed, law, f"others for {', '.join(changed)}", passed="sha256 of every file as told")
    return [whole, digests]


def _digest(path: Path) -> str | None:
    """A file's sha256; None of what is no plain file, such as a pipe, which would never end."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_recipe(place: Path, fields: Mapping[str, Any]) -> Check:
    try:
        recipe = json.loads((place / RECIPE_FILE).read_bytes())
    except ValueError as error:
        recipe = error
    told = {"experiment": fields.get("experiment"), "config": fields.get("config")}
    law = f"{RECIPE_FILE} and {PASSPORT_FILE} must tell the same experiment and config"
    return judged("config", recipe == told, law, "two that differ", passed="the same in both files")


def _ask_clean_process(places: Sequence[Path], trusted: Collection[str], device: str) -> list[list[Check]]:
    """What a process finds that is given nothing but the folders: checks of each."""
    with tempfile.TemporaryDirectory() as name:
        folders = [str(place.absolute()) for place in places]
        task = {"folders": folders, "trusted": list(trusted), "device": device, "results": name}
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(_import_paths(places)),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(name) / "modules"),
        }
        command = [sys.executable, "-P", "-m", "trainables.verification_process"]  # -P: nothing is imported from where we stand
        result = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, env=environment)
        return [_read_checks(Path(name) / f"{place}.json", result) for place in range(len(folders))]


def _read_checks(results: Path, process: subprocess.CompletedProcess[str]) -> list[Check]:
    """What the process wrote of a folder; where it did not come to it, why."""
    if results.exists():
        return [Check(**fields) for fields in json.loads(results.read_text())]
    law = "a clean process must be able to rebuild and measure the model"
    got = process.stderr[-_LONGEST:].strip() or f"exit status {process.returncode}"
    return [judged("model", False, law, got, passed="", remedy="see the error, and verify it alone")]


def _import_paths(places: Sequence[Path]) -> list[str]:
    """Where this process finds modules, less what lies in the folders: their files must not hide anybody's modules."""
    folders = {place.resolve() for place in places}
    paths = [Path(entry).resolve() for entry in sys.path]
    return [str(path) for path in paths if folders.isdisjoint((path, *path.parents))]
