"""How a broken law is told: law, value, remedy, in one sentence."""


class LawError(ValueError):
    """A value breaks a law: whoever chose it can mend it."""


def require(condition: bool, law: str, got: object, remedy: str) -> None:
    """Raise LawError("law, but got value; remedy") unless the condition holds."""
    if not condition:
        raise LawError(f"{law}, but got {got}; {remedy}")
