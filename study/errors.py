"""What the user can mend."""


class UserError(ValueError):
    """A law that the caller broke, the value that broke it, and the remedy, in one sentence; exit status 2."""
