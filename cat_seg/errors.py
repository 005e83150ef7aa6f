"""The exceptions for what a user can put right."""


class CATSegError(ValueError):
    """A user's mistake, told in one sentence.

    The message names the file, key or argument, what was expected, what came and what to do. On the
    command line only this type is shortened to its message; anything else keeps its traceback.
    """


class MissingPackageError(CATSegError, ImportError):
    """An optional package is not installed; the message says which, and how to install it."""
