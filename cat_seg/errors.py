"""The exceptions for what a user can put right."""

from __future__ import annotations


class CATSegError(ValueError):
    """A user's mistake, told in one sentence.

    The message names the file, key or argument, what was expected, what came and what to do. On the
    command line only this type is shortened to its message; anything else keeps its traceback.
    """


class MissingPackageError(CATSegError, ImportError):
    """An optional package is not installed; the message says which, and how to install it."""

    @classmethod
    def of_extra(cls, what: str, package: str, extra: str) -> MissingPackageError:
        """Make the error for what needs a package of one of our extras."""
        return cls(f"{what} need {package}, which is missing: pip install 'cat-seg[{extra}]'")
