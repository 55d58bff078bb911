"""Define ``UserError``, the exception for wrong input of the user."""


class UserError(Exception):
    """Bad input. The message is one line: the key or file, what was given, and what is allowed."""
