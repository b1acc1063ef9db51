"""Which models a filter asks for: MLflow's own filters, comparisons of metrics with each other, and numbers among parameters.

Metrics, parameters and the four attributes run_id, status, start_time and end_time are answered from the table: of a candidate
its own metrics, and what else its trial's run has. Tags and the other attributes may be edited in MLflow at any time: MLflow is
asked for them.

A model matches a comparison only if it has what is compared: a missing value matches nothing, `!=` neither, and no more does a
NaN. Differs: MLflow takes a NaN for a zero.
"""

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from study.asking.trials import Trials
from study.asking.where_text import COMPARISONS, Clause, Name, Operand, read_clauses
from study.errors import UserError

Mask = NDArray[np.bool_]
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = dict(
    zip(COMPARISONS, (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge), strict=True)
)
_TIMES = {"start_time": "start_ms", "end_time": "end_ms"}
_TEXTS = ("run_id", "status")
_ASKED = ("run_name", "user_id", "artifact_uri")
_NAMES_SHOWN = 30


def read_where(text: str) -> Callable[[Trials], Mask]:
    """Read a filter: clauses joined by AND.

    A clause compares (=, !=, <, <=, >, >=) a name with a number, a text in quotes or another name; or is LIKE, ILIKE, IN, NOT
    IN, IS NULL or IS NOT NULL. A name is `metrics.x`, `params.x`, `attributes.x` or `tags.x`; a bare one a metric, or else a
    parameter, or else an attribute; in backticks where it has other signs than letters, digits, `_`, `/` and `-`. A parameter
    that is compared with a text in quotes is text, as MLflow has it, and with anything else a number.

    Returns:
        a function that takes models and returns (models,): which are asked for. It raises a UserError for a name that no model
        has, and for what MLflow does not take.

    Raises:
        UserError: if it cannot be read.
    """
    clauses = read_clauses(text)
    return lambda models: _Filter(models).mask(clauses)


class _Filter:
    """Evaluates clauses on models."""

    def __init__(self, models: Trials) -> None:
        self._models = models

    def mask(self, clauses: Sequence[Clause]) -> Mask:
        """(models,) whether all hold."""
        mask: Mask = np.ones(len(self._models), dtype=bool)
        if not len(self._models):  # there is no telling which names they would have
            return mask
        asked = []
        for clause in map(self._resolved, clauses):
            if self._is_for_mlflow(clause) and isinstance(clause.right, tuple) and _is_param(clause.left):
                mask &= self._mlflow_says_one_of(clause.left, clause.relation, clause.right)
            elif self._is_for_mlflow(clause):
                asked.append(clause)
            else:
                mask &= self._holds(clause)
        return mask & self._mlflow_says(asked) if asked else mask

    def _resolved(self, clause: Clause) -> Clause:
        """With kinds for its bare names; every metric and parameter is one that a model has."""
        left, right = (self._kind_of(side) if isinstance(side, Name) else side for side in (clause.left, clause.right))
        assert isinstance(left, Name | float)
        resolved = Clause(left, clause.relation, right)
        for name in (left, right):
            if isinstance(name, Name) and "NULL" not in clause.relation:
                self._refuse_unknown(name)
        return resolved

    def _kind_of(self, name: Name) -> Name:
        if name.kind:
            return name
        known = (("metric", self._metrics), ("param", self._params), ("attribute", (*_TIMES, *_TEXTS, *_ASKED)))
        kind = next((kind for kind, names in known if name.key in names), None)
        if kind is None:
            self._refuse_name(name.key, [*self._metrics, *self._params])
        return Name(str(kind), name.key)

    def _refuse_unknown(self, name: Name) -> None:
        known = {"metric": self._metrics, "param": self._params}.get(name.kind)
        if known is not None and name.key not in known:
            self._refuse_name(name.key, known)

    def _refuse_name(self, key: str, known: Sequence[str]) -> None:
        shown = ", ".join(sorted(known)[:_NAMES_SHOWN]) or "none"
        nearest = difflib.get_close_matches(key, known, n=1)
        remedy = f"did you mean {nearest[0]!r}" if nearest else "see `study trial`"
        raise UserError(f"a filter must name what a model has ({shown}), but got {key!r}; {remedy}")

    @cached_property
    def _metrics(self) -> list[str]:
        return [name for name in self._models.metric_names if self._models.has_metric(name).any()]

    @cached_property
    def _params(self) -> list[str]:
        return list(dict.fromkeys(name for params in self._values for name in params))

    @cached_property
    def _values(self) -> list[dict[str, Any]]:
        return self._models.params()

    def _is_for_mlflow(self, clause: Clause) -> bool:
        name = clause.left
        if not isinstance(name, Name) or name.kind == "metric":
            return False
        if name.kind == "param":
            return isinstance(clause.right, str | tuple) and self._has_foreign
        return name.kind != "attribute" or name.key not in (*_TIMES, *_TEXTS)

    @cached_property
    def _has_foreign(self) -> bool:
        """Whether there are runs of somebody else's, of whose parameters the table has not the text but the number."""
        return any(source.experiment is None for source in self._models.sources.values())

    def _holds(self, clause: Clause) -> Mask:
        if clause.relation in ("IS NULL", "IS NOT NULL"):
            has = self._has(clause)
            return has if clause.relation == "IS NOT NULL" else ~has
        if isinstance(clause.right, str | tuple):
            return self._text_holds(clause)
        assert clause.right is not None
        left, right = self._numbers(clause.left, clause), self._numbers(clause.right, clause)
        found = _OPERATORS[clause.relation](left, right)
        return np.asarray(found & ~np.isnan(left) & ~np.isnan(right), dtype=bool)

    def _has(self, clause: Clause) -> Mask:
        name = clause.left
        if isinstance(name, Name) and name.kind == "metric":
            return self._models.has_metric(name.key)
        if isinstance(name, Name) and name.kind == "param":
            return np.array([name.key in params for params in self._values], dtype=bool)
        raise UserError(f"only metrics, parameters and tags may be NULL, but got {clause}; compare it with a value")

    def _text_holds(self, clause: Clause) -> Mask:
        name, right = clause.left, clause.right
        if not isinstance(name, Name) or name.kind == "metric" or name.key in _TIMES:
            raise UserError(f"a number must be compared with a number, but got {clause}; leave the quotes out")
        texts = self._texts(name)
        if isinstance(right, tuple):
            return np.array([text is not None and (text in right) == (clause.relation == "IN") for text in texts], dtype=bool)
        assert isinstance(right, str)
        if clause.relation in ("LIKE", "ILIKE"):
            pattern = _pattern(right, ignores_case=clause.relation == "ILIKE")
            return np.array([text is not None and pattern.fullmatch(text) is not None for text in texts], dtype=bool)
        if clause.relation not in ("=", "!="):
            raise UserError(f"a text is equal to another or not, but got {clause}; leave the quotes out to compare numbers")
        return np.array([text is not None and (text == right) == (clause.relation == "=") for text in texts], dtype=bool)

    def _texts(self, name: Name) -> list[str | None]:
        if name.kind == "param":
            return [str(params[name.key]) if name.key in params else None for params in self._values]
        return self._models.column(name.key)

    def _numbers(self, side: Operand, clause: Clause) -> NDArray[np.float64]:
        """(models,); NaN where there is none."""
        if isinstance(side, float):
            return np.full(len(self._models), side)
        if isinstance(side, Name) and side.kind == "metric":
            return self._models.metric(side.key)
        if isinstance(side, Name) and side.kind == "param":
            return np.array([_number(params.get(side.key)) for params in self._values])
        if isinstance(side, Name) and side.kind == "attribute" and side.key in _TIMES:
            return np.array([_number(time) for time in self._models.column(_TIMES[side.key])])
        raise UserError(f"a text must be compared with a text, but got {clause}; put it in single quotes")

    def _mlflow_says_one_of(self, name: Name, relation: str, texts: Sequence[str]) -> Mask:
        """(models,) whether a parameter is one of these, or none of them: MLflow takes IN for attributes alone."""
        if relation == "NOT IN":
            return self._mlflow_says([Clause(name, "!=", text) for text in texts])
        found: Mask = np.any([self._mlflow_says([Clause(name, "=", text)]) for text in texts], axis=0)
        return found

    def _mlflow_says(self, clauses: Sequence[Clause]) -> Mask:
        """(models,) whether the runs are among those that MLflow finds."""
        for clause in clauses:
            if not isinstance(clause.left, Name) or isinstance(clause.right, Name):
                raise UserError(f"tags and attributes are compared with values, but got {clause}; name a value")
        studies = set(self._models.column("study"))
        if missing := studies - self._models.sources.keys():
            raise UserError(f"a filter on tags must be of runs in MLflow, but those of {missing} are not; leave tags out")
        condition = " AND ".join(map(str, clauses))
        from study.asking.run_index import matching_runs  # and MLflow with it, which takes seconds

        sources = [self._models.sources[study] for study in sorted(studies)]
        found = set().union(*(matching_runs(source.tracking_uri, source.experiment_id, condition) for source in sources))
        return np.array([run_id in found for run_id in self._models.column("run_id")], dtype=bool)


def _is_param(name: Name | float) -> TypeGuard[Name]:
    return isinstance(name, Name) and name.kind == "param"


def _number(value: Any) -> float:
    try:
        return float("nan" if value is None or isinstance(value, bool) else value)
    except (TypeError, ValueError):
        return float("nan")


def _pattern(text: str, *, ignores_case: bool) -> re.Pattern[str]:
    first, *others = ["".join("." if sign == "_" else re.escape(sign) for sign in part) for part in text.split("%")]
    # the first place where a part fits will do: without going back, a long text costs no more than its length times the pattern's
    between = "".join(f"(?>.*?{part})" for part in others[:-1])
    expression = first + between + (f".*{others[-1]}" if others else "")
    return re.compile(expression, re.DOTALL | (re.IGNORECASE if ignores_case else 0))
