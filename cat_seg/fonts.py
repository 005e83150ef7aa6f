"""Text in any script: which font of this machine has its characters, and the text as a picture."""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

_FOLDERS = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": (f"{os.environ.get('WINDIR', 'C:/Windows')}/Fonts",),
}.get(
    sys.platform,
    ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
)
_BITMAP_SIZES = (109, 136, 160)  # the only ones of fonts of coloured bitmaps
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
_DEFAULT = ""  # stands for the font inside Pillow


def draw_text(text: str, size: int, color: tuple[int, int, int]) -> Image.Image:
    """Draw one line of text, close around it sideways and one line high.

    Args:
        text: in any script that `can_draw` says yes to; other characters become boxes.
        size: of the font, pixels.
        color: RGB; coloured emoji keep theirs.

    Returns:
        An RGBA picture, transparent around the letters.
    """
    mask, own_colors = _draw(text, size)
    picture = Image.new("RGBA", mask.size, (*color, 0))
    picture.putalpha(mask)
    if own_colors is not None:
        picture.alpha_composite(own_colors)
    return picture


def text_width(text: str, size: int) -> int:
    """Return the width of a text, in pixels."""
    return _draw(text, size)[0].width


@cache
def can_draw(text: str) -> bool:
    """Tell whether fonts of this machine have all characters; if not, log which package would."""
    for character in text:
        if _needs_font(character) and _font_of(character) is None:
            _tell(_script(character))
            return False
    return True


@lru_cache(maxsize=2048)
def _draw(text: str, size: int) -> tuple[Image.Image, Image.Image | None]:
    """Return the letters' opacity, and the emoji in their own colours if there are any."""
    height = round(1.35 * size)
    pieces = [_draw_run(run, path, size, height) for run, path in _runs(text)]
    width = max(1, sum(mask.width for mask, _ in pieces))
    mask = Image.new("L", (width, height))
    colors = Image.new("RGBA", mask.size) if any(colored for _, colored in pieces) else None
    left = 0
    for piece, colored in pieces:
        if colored is None:
            mask.paste(piece, (left, 0))
        elif colors is not None:
            colors.paste(colored, (left, 0))
        left += piece.width
    return mask, colors


def _draw_run(
    run: str, path: str, size: int, height: int
) -> tuple[Image.Image, Image.Image | None]:
    font = _load(path, size)
    width = max(1, round(font.getlength(run)))
    if font.size != size:  # coloured bitmaps of one size
        picture = Image.new("RGBA", (width, round(1.35 * font.size)))
        place = (0, picture.height // 2)
        ImageDraw.Draw(picture).text(place, run, font=font, anchor="lm", embedded_color=True)
        picture = picture.resize((max(1, round(width * size / font.size)), height))
        return picture.getchannel("A"), picture
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, round(1.02 * size)), run, fill=255, font=font, anchor="ls")
    return mask, None


def _runs(text: str) -> list[tuple[str, str]]:
    """Split a text by the fonts that it needs, in the order in which they are drawn."""
    needed = [c for c in dict.fromkeys(text) if _needs_font(c)]
    for path in [_DEFAULT, *(path for c in needed if (path := _font_of(c)) is not None)]:
        if all(_has(path, c) for c in needed):
            return [(text, path)]
    runs: list[tuple[str, str]] = []
    for character in text:
        path = runs[-1][1] if runs else _DEFAULT
        if _needs_font(character) and not (runs and _has(path, character)):
            path = _font_of(character) or _DEFAULT
        elif character == " " and "emoji" in path.lower():
            path = _DEFAULT  # the space of an emoji font is as wide as an emoji
        if runs and runs[-1][1] == path:
            runs[-1] = (runs[-1][0] + character, path)
        else:
            runs.append((character, path))
    directions = (unicodedata.bidirectional(character) for character in text)
    direction = next((d for d in directions if d in ("L", "R", "AL")), "L")
    return runs if direction == "L" else runs[::-1]


@cache
def _font_of(character: str) -> str | None:
    """Return the path of a font that has a character, None if there is none."""
    words = _script(character).lower().split()
    paths = sorted(_system_fonts(), key=lambda path: not any(w in path.lower() for w in words))
    return next((path for path in (_DEFAULT, *paths) if _has(path, character)), None)


@cache
def _system_fonts() -> tuple[str, ...]:
    """Return the fonts of this machine, upright sans-serif ones first."""
    suffixes = (".ttf", ".otf", ".ttc")
    found = (
        os.path.join(folder, name)
        for root in _FOLDERS
        for folder, _, names in os.walk(os.path.expanduser(root))
        for name in names
        if name.lower().endswith(suffixes)
    )

    def rank(path: str) -> tuple[bool, bool, int, str]:
        name = Path(path).stem.lower()
        special = any(word in name for word in ("bold", "italic", "oblique", "mono", "serif"))
        return special, "sans" not in name, len(name), path

    return tuple(sorted(found, key=rank))


@cache
def _has(path: str, character: str) -> bool:
    """Tell whether a font has a character, by comparing its picture with that of a missing one."""
    try:
        font = _load(path, 24)
        return bytes(font.getmask(character)) != _missing(path) and any(font.getmask(character))
    except (OSError, ValueError):  # a font that FreeType does not read, or cannot draw
        return False


@cache
def _missing(path: str) -> bytes:
    return bytes(_load(path, 24).getmask("\U0010ffff"))


@lru_cache(maxsize=128)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    if path == _DEFAULT:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        for fixed in _BITMAP_SIZES:
            try:
                return ImageFont.truetype(path, fixed)
            except OSError:
                continue
        raise


def _needs_font(character: str) -> bool:
    """Tell whether a character has a shape of its own: no space, joiner or combining mark."""
    category = unicodedata.category(character)
    return category[0] not in "ZM" and category not in ("Cc", "Cf")


def _script(character: str) -> str:
    name = unicodedata.name(character, "UNKNOWN").split()[0]
    if name in _EAST_ASIAN:
        return "CJK"
    return "EMOJI" if unicodedata.category(character) == "So" else name


@cache  # once
def _tell(script: str) -> None:
    package = {"CJK": "fonts-noto-cjk", "EMOJI": "fonts-noto-color-emoji"}.get(
        script, "fonts-noto-core"
    )
    logger.warning(
        "No font on this machine has %s characters: such names are drawn as numbers. A font is in "
        "the package %s (Debian, Ubuntu) or at fonts.google.com/noto",
        script.lower() if script != "CJK" else "Chinese, Japanese and Korean",
        package,
    )
