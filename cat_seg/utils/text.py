"""Text of strangers, such as file names, where it is shown."""

from __future__ import annotations

import os
import unicodedata


def printable(text: str | os.PathLike[str]) -> str:
    r"""Escape what is no text: control and direction codes, and bytes of names not in UTF-8.

    A file may be called anything, also "\x1b[2J", which would clear the screen.
    """
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in os.fspath(text)
    )


def as_text(path: str | os.PathLike[str]) -> str:
    """Return a file's name as text that every encoding of Unicode can hold."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()
