"""A study's specification: what it searches, how, how long and where; kept as `spec.json`."""

import dataclasses
import hashlib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import search_spaces
from search_spaces.space import StudySpace
from study.errors import UserError
from study.home import write_whole
from trainables.storage import Folder

KEEPS = ("front", "all")
"""Which models a study keeps in MLflow: those on its front or near it (`study.keeping.retention`), or every one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One dimension of a space, as its first draw declared it.

    Attributes:
        values: the range or the choices, for people.
        conditional: some configs do not have it.
    """

    name: str
    values: str
    conditional: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SpaceDescription:
    """What a space does: everything about it that a study's identity covers.

    Attributes:
        objectives: their goals, by metric.
        representative: the goal of the metric that chooses among a trial's candidates; empty for the first objective.
        at_rungs: goals of the metrics that early stopping goes by, in the objectives' order.
    """

    experiment: str
    objectives: dict[str, str]
    constraints: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]
    first_trials: tuple[Mapping[str, Any], ...]
    varied_digest: str
    representative: dict[str, str] = dataclasses.field(default_factory=dict)
    at_rungs: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a study may spend in all its sessions together; None for no limit. A trial counts from when a worker has it.

    Attributes:
        cpu_hours: CPUs that trials hold, times hours that they hold them.
        gpu_hours: the same of GPUs; shares count as such.
        flops: floating-point operations that experiments count (`trainables.experiment.Experiment.flops`).
    """

    cpu_hours: float | None = None
    gpu_hours: float | None = None
    flops: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))

    def with_those_of(self, other: "Limits | None") -> "Limits":
        """These, but for those that another has."""
        given = {} if other is None else {name: value for name, value in dataclasses.asdict(other).items() if value is not None}
        return dataclasses.replace(self, **given)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """A study that another was forked from, as it was then.

    Attributes:
        num_trials: its budget.
    """

    study: str
    study_id: str
    spec_hash: str
    num_trials: int

    def __str__(self) -> str:
        return f"{self.study} ({self.spec_hash})"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """Everything that a resume needs.

    Attributes:
        name: of the study.
        study_id: random; tells two studies of one name apart.
        space: `module:function`.
        space_arguments: what the function is called with.
        launched_from: the folder that relative paths among them mean.
        import_paths: folders that the space and its experiment are imported from, beside the installed packages.
        description: what the space does (`study.probe`).
        sampler, seed: of the search.
        lookahead: of the deterministic mode (`study.running.tell_order`); None for none.
        num_trials: the budget: finished, stopped and failed trials in all.
        num_cpus, num_gpus: of one trial.
        storage: where checkpoints, models and logs go.
        tracking_uri: of MLflow.
        log_scale, color_by: how pictures show the trials.
        versions: of the packages that it was launched with.
        commit: git commit it was launched from, if any.
        parents: the studies that it was forked from, oldest first.
        keep: one of `KEEPS`; a study from before one could choose keeps all.
        record: address of the database of Optuna's record; None for a file in the study home.
        gpu_memory_gib, resources: of one trial (`search_spaces.space.StudySpace`).
        sampler_options: what the sampler is made with, beside its seed.
        replicates: trials of every parameter set, each with a seed of its own.
        early_stopping: which trials are stopped before their end, as `study.running.rungs` reads it.
        given_trials: parameters of trials that the launch asked for; they come before those of the space.
        warm_start: studies whose trials its sampler knew from the start.
        warm_start_digest: of what they were then (`study.running.warm_start`).
        pack: trials of one shape that a worker may run as one program; only as many as pay are (`study.running.packing`).
        limits: what the study may spend beside `num_trials`.
        until_flat: end when the front's hypervolume grows no more (`study.running.flatness`).
    """

    name: str
    study_id: str
    space: str
    import_paths: list[str]
    description: SpaceDescription
    sampler: str
    seed: int
    num_trials: int
    num_cpus: float
    num_gpus: float
    storage: str
    tracking_uri: str
    log_scale: list[str]
    color_by: str | None
    versions: dict[str, str]
    commit: str | None
    space_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    launched_from: str = "."
    lookahead: int | None = None
    parents: tuple[Parent, ...] = ()
    keep: str = "all"
    record: str | None = None
    gpu_memory_gib: float = 0.0
    resources: dict[str, float] = dataclasses.field(default_factory=dict)
    sampler_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    replicates: int = 1
    early_stopping: str = "none"
    given_trials: tuple[Mapping[str, Any], ...] = ()
    warm_start: tuple[str, ...] = ()
    warm_start_digest: str = ""
    pack: int = 1
    limits: Limits = dataclasses.field(default_factory=lambda: Limits())
    until_flat: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this study and no other: not its name, budget, resources, places, parents, or what it keeps."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.description)))
        fields["parameters"] = {p["name"]: p["values"] for p in fields["parameters"]}
        fields["configs made by fixed draws"] = fields.pop("varied_digest")
        if not fields["representative"]:
            del fields["representative"]  # studies from before there was one keep their hash
        guides = fields.pop("at_rungs")
        if self.early_stopping != "none":
            fields |= {"early stopping": self.early_stopping, "at rungs": guides}
        if self.lookahead is not None:
            fields["deterministic lookahead"] = self.lookahead
        if self.sampler_options:
            fields["sampler options"] = self.sampler_options
        if self.replicates != 1:
            fields["replicates"] = self.replicates
        if self.warm_start:
            fields |= {"warm start": list(self.warm_start), "what it found": self.warm_start_digest}
        return fields | {"sampler": self.sampler, "seed": self.seed}

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Where relative paths among its arguments lead from: where it was launched, while that is there."""
        return self.launched_from if Path(self.launched_from).is_dir() else "."

    @property
    def study_folder(self) -> Folder:
        """The study's in its storage."""
        return Folder(self.storage).child(self.name)

    def trial_folder(self, number: int) -> Folder:
        """A trial's in the study's storage."""
        return self.study_folder.child(f"trials/{number:05d}")

    def artifacts(self, home: Path) -> Path | None:
        """Where MLflow keeps the files of its runs; None where its server says where.

        Args:
            home: that the study is run from.
        """
        return home / "mlartifacts" / self.name if self.tracking_uri.startswith("sqlite:") else None

    def as_parents(self) -> tuple[Parent, ...]:
        """The parents of a study that is forked from this one now."""
        here = Parent(study=self.name, study_id=self.study_id, spec_hash=self.hash, num_trials=self.num_trials)
        return (*self.parents, here)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> Self:
        fields = json.loads(path.read_text())
        description = fields["description"]
        description["parameters"] = tuple(Parameter(**parameter) for parameter in description["parameters"])
        for key in ("constraints", "first_trials"):
            description[key] = tuple(description[key])
        fields["description"] = SpaceDescription(**description)
        fields["parents"] = tuple(Parent(**parent) for parent in fields.get("parents", ()))
        for key in ("given_trials", "warm_start"):
            fields[key] = tuple(fields.get(key, ()))
        fields["limits"] = Limits(**fields.get("limits", {}))
        return cls(**fields)


def load_space(
    reference: str, *, arguments: Mapping[str, Any] | None = None, folder: Path | None = None
) -> tuple[StudySpace, list[str], str | None]:
    """Import `module:function` and call the function.

    A module in the user's folder comes before one of `search_spaces`, and that before an installed one.

    Args:
        reference: for instance `cmsp_curriculum:tiny`.
        arguments: of the function; what is not here has its default.
        folder: where the user's own modules are; None for the current directory.

    Returns:
        the space, the folders that workers must import from, and a notice for the user, if there is one.

    Raises:
        UserError: if there is no such space.
    """
    function, paths, notice = _find_function(reference, folder)
    space = _call(function, reference, arguments or {})
    if not isinstance(space, StudySpace):
        raise UserError(f"{reference} must return a search_spaces.space.StudySpace, but got {space!r}; return one")
    return space, paths, notice


def accepted_arguments(reference: str, arguments: Mapping[str, Any], *, folder: Path | None = None) -> dict[str, Any]:
    """Those of some arguments that a space's function takes. Otherwise as `load_space`."""
    known = inspect.signature(_find_function(reference, folder)[0]).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {key: value for key, value in arguments.items() if takes_all or key in known}


def _find_function(reference: str, folder: Path | None) -> tuple[Callable[..., Any], list[str], str | None]:
    folder = (folder or Path.cwd()).absolute()
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise UserError(f"a space must be given as module:function, but got {reference!r}; try 'cmsp_curriculum:tiny'")
    head = module_name.split(".")[0]
    is_local = (folder / f"{head}.py").is_file() or (folder / head / "__init__.py").is_file()
    is_ours = module_name in builtin_modules()
    notice, paths = None, []
    if is_local and head not in {"study", "trainables", "search_spaces"}:
        paths = [str(folder)]
        sys.path.extend(path for path in paths if path not in sys.path)
        importlib.invalidate_caches()
        full_name = module_name
        if is_ours:
            notice = f"{module_name} is taken from {folder}; it hides search_spaces.{module_name}"
    else:
        full_name = f"search_spaces.{module_name}" if is_ours else module_name
    module = _import(full_name, reference, folder)
    _refuse_other_file(module, folder, is_local=bool(paths), name=module_name)
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function) or function_name.startswith("_"):
        public = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == full_name and n[0] != "_"]
        raise UserError(
            f"a space must be a function of its module, but {module_name} has no function {function_name!r}; "
            f"use {' or '.join(f'{module_name}:{name}' for name in public) or 'another module'}"
        )
    return function, paths, notice


def builtin_modules() -> list[str]:
    """Names of our modules of spaces."""
    folder = Path(search_spaces.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in {"__init__", "space"})


def _call(function: Callable[..., Any], reference: str, arguments: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        known = ", ".join(inspect.signature(function).parameters) or "none"
        raise UserError(
            f"a space's function takes its own arguments ({known}), but {reference} got {dict(arguments)} ({error}); "
            "see `study spaces`"
        ) from error
    try:
        return function(**arguments)
    except Exception as error:
        raise UserError(f"a space's function must return a space, but {reference} raised {_where(error)}; mend it") from error


def _where(error: Exception) -> str:
    """An error with the place that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _import(full_name: str, reference: str, folder: Path) -> Any:
    try:
        return importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name is None or not full_name.startswith(error.name):
            raise UserError(f"a space's module must be importable, but {reference} needs {error.name}; install it") from error
        raise UserError(
            f"a space must be in search_spaces ({', '.join(builtin_modules())}), in {folder} or installed, but there is no "
            f"module {full_name.removeprefix('search_spaces.')!r}; see `study spaces`"
        ) from error
    except Exception as error:
        raise UserError(f"a space's module must be importable, but {reference} raised {_where(error)}; mend it") from error


def _refuse_other_file(module: Any, folder: Path, *, is_local: bool, name: str) -> None:
    """A local module that an installed one of the same name hides would silently run the wrong code."""
    found = getattr(module, "__file__", None)
    if is_local and not (found and Path(found).absolute().is_relative_to(folder)):
        raise UserError(f"a local space's name must be its own, but {name} is {found} already; rename {name}.py")
