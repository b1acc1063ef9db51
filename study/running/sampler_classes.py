"""Samplers by where their class is: `module:Class`, or `optunahub:package:Class` of https://hub.optuna.org.

A package of OptunaHub is code that is downloaded and run; `optunahub:samplers/name@ref:Class` takes it as it was at a tag or
commit of the registry.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from optuna.samplers import BaseSampler

from study.errors import UserError

_HUB = "optunahub"
_NO_JSON = ("Callable", "Sampler", "Crossover", "Mutation", "ndarray", "FrozenTrial")


def load_sampler_class(name: str) -> type[BaseSampler]:
    """Import a sampler's class.

    Raises:
        UserError: if there is none of that name.
    """
    module_name, _, class_name = name.rpartition(":")
    try:
        module = _hub_package(module_name) if module_name.startswith(f"{_HUB}:") else importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a sampler's module must be importable, but {name} raised {type(error).__name__}: {error}; install it or mend it"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, BaseSampler)) or inspect.isabstract(found):
        raise UserError(
            f"a sampler must be a subclass of optuna.samplers.BaseSampler, but {name} is {found!r}; "
            "for instance optuna.samplers:BruteForceSampler"
        )
    return found


def _hub_package(address: str) -> Any:
    try:
        hub = importlib.import_module(_HUB)
    except ModuleNotFoundError as error:
        raise UserError(
            f"a sampler of OptunaHub needs the package optunahub, but got {address} without it; pip install optunahub"
        ) from error
    package, _, ref = address.removeprefix(f"{_HUB}:").partition("@")
    return hub.load_module(package, ref=ref or "main")


def takes_seed(sampler_class: type[BaseSampler]) -> bool:
    """Whether a sampler can be made to draw the same again."""
    return "seed" in inspect.signature(sampler_class).parameters


def check_options(name: str, sampler_class: type[BaseSampler], options: Mapping[str, Any]) -> None:
    """Check options against a constructor.

    Raises:
        UserError: if it has no such argument, or takes no such value.
    """
    if "seed" in options:
        raise UserError(f"a sampler's seed is made of the study's, but the options give seed {options['seed']!r}; use --seed")
    known = inspect.signature(sampler_class).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    able = [key for key, parameter in known.items() if key != "seed" and _takes_json(parameter)]
    for key, value in options.items():
        if key not in able and not (takes_all and key not in known):
            raise UserError(f"an option of sampler {name} must be one of {', '.join(able) or 'none'}, but got {key!r}; drop it")
        if key in known and not _fits(known[key].default, value):
            raise UserError(
                f"option {key} of sampler {name} must be like {json.dumps(known[key].default)}, but got {json.dumps(value)}; "
                "change it or drop it"
            )


def _takes_json(parameter: inspect.Parameter) -> bool:
    is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return is_named and not any(word in str(parameter.annotation) for word in _NO_JSON)


def _fits(default: Any, value: Any) -> bool:
    """Whether a value is of its default's kind, as far as the default tells."""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return not isinstance(default, bool | str) or isinstance(value, type(default))
    return not isinstance(value, bool) and isinstance(value, int if isinstance(default, int) else (int, float))
