"""The one exception that means: the user's input is wrong, and here is the line that says how."""


class UserError(Exception):
    """Bad input. Its message is one line that names the key or file, what was wrong and what is allowed."""
