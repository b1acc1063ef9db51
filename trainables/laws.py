"""How a broken law is told: law, value, remedy, in one sentence."""


def require(condition: bool, law: str, got: object, remedy: str) -> None:
    """Raise ValueError("law, but got value; remedy") unless the condition holds."""
    if not condition:
        raise ValueError(f"{law}, but got {got}; {remedy}")
