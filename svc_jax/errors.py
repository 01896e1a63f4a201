"""Errors a user can mend."""


class UserError(ValueError):
    """One line that names the thing, the value and the remedy; exit code 2."""
