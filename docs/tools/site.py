"""Makes the site of the repository's Markdown; mkdocs calls this (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NO_PAGES = (DOCS / "tools", DOCS / "examples")  # also in `exclude_docs`
# A relative target: of a link or picture of Markdown, or of HTML within it.
_TARGET = re.compile(
    r"""(?P<before>\]\(|\b(?:src|href|srcset)=")(?![a-z]+:|[#/])(?P<path>[^)"\s#]+)"""
)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Put the README on the first page, and point links to where their targets are on the site."""
    source = DOCS / page.file.src_uri
    if page.file.src_uri == "index.md":
        source = ROOT / "README.md"
        markdown = source.read_text(encoding="utf-8")
    return rewrite_links(markdown, source, config["repo_url"])


def rewrite_links(markdown: str, source: Path, repository: str) -> str:
    """Rewrite relative links: to pages among docs/ as from there, to other files as addresses.

    Args:
        markdown: text of a page.
        source: the file that it is from, to which its links are relative.
        repository: address of the repository.

    Raises:
        ValueError: if a link leads to nothing.
    """

    def rewrite(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match["path"]))
        if not target.exists() or not target.is_relative_to(ROOT):
            raise ValueError(f"{source.relative_to(ROOT)} links to {match['path']}: not there.")
        here = target.is_relative_to(DOCS)
        if here and not any(target.is_relative_to(folder) for folder in NO_PAGES):
            return match["before"] + target.relative_to(DOCS).as_posix()
        kind = "tree" if target.is_dir() else "blob"
        address = f"{repository.rstrip('/')}/{kind}/main/{target.relative_to(ROOT).as_posix()}"
        return match["before"] + address

    return _TARGET.sub(rewrite, markdown)
