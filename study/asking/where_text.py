"""The text of a filter, read: comparisons joined by AND, as MLflow writes them, and a little more."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from study.errors import UserError

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<text>'[^']*')
    |(?P<name>(?:[^\W\d][\w/-]*|`[^`]*`|"[^"]*")(?:\.(?:[\w/-]+|`[^`]*`|"[^"]*"))*)
    |(?P<sign><=|>=|!=|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_PIECE = re.compile(r"""`[^`]*`|"[^"]*"|[^.]+""")
_KEYWORDS = ("AND", "IS", "NOT", "NULL", "LIKE", "ILIKE", "IN")
_KINDS = {
    "metric": ("metric", "metrics"),
    "param": ("param", "params", "parameter", "parameters"),
    "attribute": ("attribute", "attributes", "attr", "run"),
    "tag": ("tag", "tags"),
    "dataset": ("dataset", "datasets"),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}
COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")


@dataclass(frozen=True, slots=True)
class Name:
    """What a filter asks for.

    Attributes:
        kind: metric, param, attribute, tag or dataset; empty for a bare name.
    """

    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind}.`{self.key}`" if self.kind else f"`{self.key}`"


Operand = Name | float | str


@dataclass(frozen=True, slots=True)
class Clause:
    """One comparison.

    Attributes:
        relation: one of `COMPARISONS`, LIKE, ILIKE, IN, NOT IN, IS NULL, IS NOT NULL.
        right: a name, a number or a text; of IN texts; of IS NULL None.
    """

    left: Name | float
    relation: str
    right: Operand | tuple[str, ...] | None

    def __str__(self) -> str:
        right = () if self.right is None else (_shown(self.right),)
        return " ".join((str(self.left), self.relation, *right))


def _shown(value: Operand | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, str):
        return f'"{value}"' if "'" in value else f"'{value}'"
    return str(value)


def read_clauses(text: str) -> list[Clause]:
    """Read a filter.

    Raises:
        UserError: if it is none.
    """
    return _Reader(text).clauses()


class _Reader:
    """Reads one filter, token by token: kind and text of each, the last one empty."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [*self._split(), ("end", "")]
        self._place = 0

    def _split(self) -> Iterator[tuple[str, str]]:
        place = 0
        text = self._text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                self._refuse(text[place:].split()[0])
            kind = str(match.lastgroup)
            token = match[kind]
            place = match.end()
            yield ("keyword", token.upper()) if token.upper() in _KEYWORDS else (kind, token)

    def clauses(self) -> list[Clause]:
        found = [self._clause()]
        while self._takes("AND"):
            found.append(self._clause())
        if self._tokens[self._place][0] != "end":
            self._refuse(self._tokens[self._place][1])
        return found

    def _clause(self) -> Clause:
        left = self._operand()
        if isinstance(left, str):
            self._refuse(f"'{left}'")
        if self._takes("IS"):
            relation = "IS NOT NULL" if self._takes("NOT") else "IS NULL"
            self._expect("NULL")
            return Clause(left, relation, None)
        is_negated = self._takes("NOT")
        if is_negated or self._tokens[self._place][1] == "IN":
            self._expect("IN")
            return Clause(left, "NOT IN" if is_negated else "IN", self._texts())
        relation = self._next()[1]
        if relation in ("LIKE", "ILIKE"):
            return Clause(left, relation, self._a_text())
        if relation not in COMPARISONS:
            self._refuse(relation)
        return Clause(left, relation, self._operand())

    def _texts(self) -> tuple[str, ...]:
        self._expect("(")
        texts = [self._a_text()]
        while self._takes(","):
            texts.append(self._a_text())
        self._expect(")")
        return tuple(texts)

    def _a_text(self) -> str:
        token = self._tokens[self._place][1]
        value = self._operand()
        if not isinstance(value, str):
            self._refuse(token)
        return value

    def _operand(self) -> Operand:
        kind, token = self._next()
        if kind == "number":
            return float(token)
        if kind == "text":
            return token[1:-1]
        if kind != "name":
            self._refuse(token)
        pieces: list[str] = [piece.strip('`"') for piece in _PIECE.findall(token)]
        if token == f'"{pieces[0]}"':
            return pieces[0]  # MLflow takes texts in either quotes
        if len(pieces) > 1 and pieces[0] in _KIND_OF:
            return Name(_KIND_OF[pieces[0]], ".".join(pieces[1:]))
        return Name("", ".".join(pieces))

    def _next(self) -> tuple[str, str]:
        token = self._tokens[self._place]
        self._place = min(self._place + 1, len(self._tokens) - 1)
        return token

    def _takes(self, token: str) -> bool:
        is_next = self._tokens[self._place] in (("keyword", token), ("sign", token))
        self._place += is_next
        return is_next

    def _expect(self, token: str) -> None:
        if not self._takes(token):
            self._refuse(self._tokens[self._place][1])

    def _refuse(self, found: str) -> NoReturn:
        where = f"{found} in {self._text!r}" if found else f"{self._text!r}, which ends too soon"
        raise UserError(
            f"a filter must be comparisons joined by AND, but got {where}; "
            "for example: params.way = 'lasso' AND metrics.python_loss_nats < metrics.prose_loss_nats"
        )
