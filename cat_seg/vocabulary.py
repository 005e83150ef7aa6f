"""Words to classes: the one parser of words, wherever they come from.

A class has one name or several, its synonyms. Wherever a class is one string, synonyms are
separated by ", " (a comma and a blank, as in the published class lists) or by "|"; so a name holds
neither. Names are compared as CLIP's tokenizer sees them: case, blanks and HTML escapes are gone.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from cat_seg import class_lists
from cat_seg.errors import CATSegError
from cat_seg.resources import user_path
from cat_seg.utils.files import atomic_write
from cat_seg.word_files import EXAMPLE, as_id, parse_literal, read_words, shorten

if TYPE_CHECKING:
    from torch import Tensor

Words = Union["Vocabulary", str, Mapping[Any, Any], Iterable[Any]]  # what `parse` understands

_TEXT_TOKENS = 75  # of CLIP's context of 77, without the marks of start and end
_LONGEST = 1000  # characters of a name; the tokenizer's time grows with the square of a word


@dataclass(frozen=True)
class Vocabulary:
    """Classes and their names, immutable; equal and hashable by words, not by features.

    Attributes:
        classes: the names of each of T classes, the one to display first.
        background: further classes, each a string, which compete for pixels but are reported as
            background.
        features: (T + len(background), P, D) text features of the classes, then of the background,
            of the model that made them.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()
    features: Tensor | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, words: Words, *, background: Words = ()) -> Vocabulary:
        """Understand words in any form that people keep them in.

        Args:
            words: a list of names or of lists of synonyms; a single string, which is one class; a
                dict of ids and names in either direction; COCO's categories, or a dict that holds
                them; or a vocabulary, which is returned as it is.
            background: words of the same kinds, for the background.

        Raises:
            CATSegError: if a name is empty or no text, if the tokenizer cannot tell two classes
                apart, or if `words` is a string that may mean several classes.
        """
        inner: Words = ()
        if isinstance(words, Vocabulary):
            if isinstance(background, tuple) and background in ((), words.background):
                return words
            classes = words.classes
        else:
            listed, inner = _listed(words)
            classes = tuple(_names(item, f"Class {i}") for i, item in enumerate(listed))
        if not classes:
            raise CATSegError(f"The vocabulary is empty; {EXAMPLE}.")
        items, _ = _listed(background or inner)
        behind = tuple(_names(item, f"Background word {i}") for i, item in enumerate(items))
        _check_distinct([*classes, *behind])
        return cls(classes, tuple(map(", ".join, behind)))

    @classmethod
    def from_text(cls, text: str, *, background: Words = ()) -> Vocabulary:
        """Parse the command line's syntax, as in "cat, sofa|couch, window".

        Classes are separated by commas or line ends, synonyms by "|". Written as a JSON or Python
        list, it is one.

        Raises:
            CATSegError: see `parse`.
        """
        if text.lstrip().startswith(("[", "{")):
            return cls.parse(parse_literal(text), background=background)
        parts = (part.strip() for part in re.split(r"[,\n\r]", text))
        return cls.parse([part for part in parts if part.strip("| ")], background=background)

    @classmethod
    def read(cls, path: str | Path, *, background: Words = ()) -> Vocabulary:
        """Read a file of words, or a published class list by its name, such as "ade150".

        Understood are JSON and YAML (whatever `parse` takes), tables with a header (.csv, .tsv),
        text with a class a line, and what `save` wrote. On a line, commas and "|" separate
        synonyms; ids that count up before or behind the names are dropped; lines that begin with
        "#" are comments. UTF-8, and UTF-16 or UTF-32 with or without a byte order mark.

        Raises:
            CATSegError: naming the file, if it cannot be read or understood; see `parse`.
        """
        path = user_path(path)
        if str(path) in class_lists.PUBLISHED and not _is_file(path):
            return cls.parse(class_lists.class_names(str(path)), background=background)
        if not _is_file(path):
            raise CATSegError(
                f"{path}: no such file; expected a file of class names, or one of "
                f"{', '.join(class_lists.PUBLISHED)}."
            )
        try:
            if path.suffix.lower() == ".safetensors":
                vocabulary = _load_safetensors(path)
                return cls.parse(vocabulary, background=background or vocabulary.background)
            return cls.parse(read_words(path), background=background)
        except (CATSegError, OSError) as error:
            raise CATSegError(f"{path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Load what `save` wrote; the same as `read`."""
        return cls.read(path)

    def save(self, path: str | Path) -> None:
        """Write the words as JSON; with their features, if the suffix is .safetensors.

        Raises:
            CATSegError: if the suffix is neither .json nor .safetensors.
        """
        path = Path(path)
        content = json.dumps(
            {"classes": self.classes, "background": self.background}, ensure_ascii=False
        )
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import save_file

            features = {} if self.features is None else {"features": self.features}
            tensors = {name: t.detach().cpu().contiguous() for name, t in features.items()}
            with atomic_write(path) as part:
                save_file(tensors, part, {"vocabulary": content})
        elif path.suffix.lower() == ".json":
            with atomic_write(path) as part:
                part.write_text(content + "\n", encoding="utf-8")
        else:
            raise CATSegError(f"{path}: expected a name that ends in .json or .safetensors.")

    @property
    def names(self) -> tuple[str, ...]:
        """A display name of each class, all different.

        It is the class's first name, or all of its names where another class has the same first
        name (as in ADE20K's full list).
        """
        count = Counter(synonyms[0] for synonyms in self.classes)
        return tuple(s[0] if count[s[0]] == 1 else ", ".join(s) for s in self.classes)

    @property
    def strings(self) -> list[str]:
        """Each class as one string, "sofa, couch", as in the published class lists."""
        return [", ".join(synonyms) for synonyms in self.classes]

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Return the class that has a name, which may be any of its synonyms.

        Raises:
            CATSegError: if no class has it.
        """
        key = _tokens(name)
        ranks = (self.names, [s[0] for s in self.classes])
        for listed in ranks:
            for i, listed_name in enumerate(listed):
                if _tokens(listed_name) == key:
                    return i
        for i, synonyms in enumerate(self.classes):
            if key in map(_tokens, synonyms):
                return i
        close = difflib.get_close_matches(name, self.names, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see its names."
        raise CATSegError(f"{name!r} is not in the vocabulary of {len(self)} classes; {hint}")

    def problems(self) -> list[str]:
        """Tell what is allowed but may surprise, a sentence each: cuts, shared names, commas."""
        least, _ = _room()
        found = []
        owners: dict[tuple[int, ...], dict[int, str]] = defaultdict(dict)
        for i, synonyms in enumerate([*self.classes, *map(split_synonyms, self.background)]):
            for name in synonyms:
                count = len(_tokens(name))
                owners[_tokens(name)].setdefault(i, name)
                if count > least:
                    found.append(
                        f"{name!r} has {count} tokens; CLIP reads no more than the first {least} "
                        "in the longest prompt. Shorten it."
                    )
                if "," in name:
                    found.append(
                        f"{name!r} is read as one name; synonyms are separated by a comma and a "
                        'blank, or by "|".'
                    )
        every = [*self.strings, *self.background]
        for of_name in owners.values():
            if len(of_name) > 1:
                names = " and ".join(f"{i} ({every[i]})" for i in of_name)
                found.append(f"{next(iter(of_name.values()))!r} is a name of classes {names}.")
        return found


def parse_vocabulary(class_names: Sequence[str]) -> list[list[str]]:
    """Split each class's names: ["cat", "person, child"] gives [["cat"], ["person", "child"]].

    This is the published meaning of a class list, which allows a class to be there twice.

    Raises:
        CATSegError: if there is no class, or one without a name.
    """
    if isinstance(class_names, str):
        raise CATSegError(
            f"The vocabulary is one string, {class_names!r}; expected a list of class names."
        )
    if not class_names:
        raise CATSegError("The vocabulary is empty; expected at least one class name.")
    classes = [split_synonyms(name) for name in class_names]
    for i, synonyms in enumerate(classes):
        if not synonyms:
            raise CATSegError(
                f"Class {i} of the vocabulary is {class_names[i]!r}; expected a name, or several "
                "separated by ', '."
            )
    return classes


def split_synonyms(text: str) -> list[str]:
    """Split a class's names: "sofa, couch" or "sofa|couch" gives ["sofa", "couch"]."""
    return [part.strip() for part in re.split(r", |\|", text) if part.strip(" ,")]


def describe(vocabulary: Vocabulary) -> str:
    """Show how words were understood: a table of classes, then what may surprise.

    The columns are the class's index ("-" for the background), its display name, its other names
    and the number of tokens of its longest name.
    """
    classes = [*vocabulary.classes, *map(split_synonyms, vocabulary.background)]
    indices = [*map(str, range(len(vocabulary))), *"-" * len(vocabulary.background)]
    rows = [("", "class", "synonyms", "tokens")]
    for index, (first, *others) in zip(indices, classes, strict=True):
        tokens = max(len(_tokens(name)) for name in (first, *others))
        rows.append((index, shorten(first, 40), shorten(", ".join(others), 60), str(tokens)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([*table, *(f"Note: {problem}" for problem in vocabulary.problems())])


def _listed(words: Any) -> tuple[list[Any], Any]:
    """Turn anything that holds words into a list of classes, and the background that it names."""
    if isinstance(words, Vocabulary):
        return list(words.classes), words.background
    if isinstance(words, str):
        if re.search(r"[,|\n]", words):
            raise CATSegError(
                f"The vocabulary is one string, {words!r}, which may be one class or several; "
                'expected a list, as in ["cat", "sofa"], or Vocabulary.from_text("cat, sofa").'
            )
        return [words], ()
    if isinstance(words, Mapping):
        return _from_mapping(words)
    if isinstance(words, bytes | set | frozenset) or not isinstance(words, Iterable):
        what = "a set, which has no order" if isinstance(words, set | frozenset) else repr(words)
        raise CATSegError(f"The vocabulary is {what:.100}; {EXAMPLE}.")
    items = list(words)
    if items and all(isinstance(item, Mapping) for item in items):
        return _from_categories(items), ()
    return items, ()


def _from_mapping(words: Mapping[Any, Any]) -> tuple[list[Any], Any]:
    """List the names of ids and names, in either direction, or of a dict that holds words."""
    if words and all(as_id(key) is not None for key in words):
        return [words[key] for key in sorted(words, key=lambda key: as_id(key) or 0)], ()
    if words and all(as_id(value) is not None for value in words.values()):
        by_id = {as_id(value): name for name, value in words.items()}
        if len(by_id) < len(words):
            raise CATSegError(f"Two names have the same id in {shorten(words)}; expected one each.")
        return [by_id[key] for key in sorted(by_id, key=lambda key: key or 0)], ()
    for key in ("categories", "classes", "id2label", "label2id", "names", "class_names"):
        if isinstance(words.get(key), list | tuple | Mapping):
            return _listed(words[key])[0], words.get("background", ())
    raise CATSegError(
        f"The vocabulary is {shorten(words)}; expected ids and names, as in "
        '{"0": "cat", "1": "sofa"}, or a key "categories", "classes", "id2label" or "names".'
    )


def _from_categories(categories: list[Mapping[str, Any]]) -> list[Any]:
    """List the names of COCO's categories by id, in the order of the ids where all have one."""
    for i, category in enumerate(categories):
        if "name" not in category:
            raise CATSegError(f'Category {i} is {shorten(category)}; expected a key "name".')
    ids = [as_id(category.get("id")) for category in categories]
    known = [i for i in ids if i is not None]
    if len(set(known)) < len(known):
        raise CATSegError("Two categories have the same id; expected one each.")
    if len(known) == len(ids):
        categories = sorted(categories, key=lambda category: as_id(category["id"]) or 0)
    return [category["name"] for category in categories]


def _names(item: Any, which: str) -> tuple[str, ...]:
    """Return a class's names, each once.

    Raises:
        CATSegError: if there is none, or one that is no text for the tokenizer.
    """
    parts = [item] if isinstance(item, str) else item
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        hint = "; put it in quotes" if isinstance(item, bool | int | float) else ""
        raise CATSegError(
            f"{which} is {shorten(repr(item))}; expected a name or a list of names{hint}."
        )
    names: dict[tuple[int, ...], str] = {}
    for part in parts:
        found = [" ".join(name.split()) for name in split_synonyms(part)]
        if not found:
            raise CATSegError(
                f"{which} has the empty name {shorten(repr(part))}; name it or leave it out."
            )
        for name in found:
            names.setdefault(_checked_tokens(name, which), name)
    if not names:
        raise CATSegError(f"{which} is {shorten(repr(item))}; expected at least one name.")
    return tuple(names.values())


def _checked_tokens(name: str, which: str) -> tuple[int, ...]:
    """Return the tokens of a name, once it is found to be one."""
    if len(name) > _LONGEST:
        raise CATSegError(
            f"{which} is named {shorten(repr(name))}, {len(name)} characters; expected words, "
            f"at most {_LONGEST} characters."
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise CATSegError(
            f"{which} is named {name!r}, which holds a character that is no text; is its file in "
            "UTF-8?"
        )
    if all(unicodedata.category(character) == "Cf" for character in name):
        raise CATSegError(f"{which} is named {name!r}, which shows nothing; expected a word.")
    tokens = _tokens(name)
    if not set(tokens).isdisjoint(_tokenizer().all_special_ids):
        raise CATSegError(f"{which} is named {name!r}, which holds one of CLIP's own marks.")
    return tokens


def _check_distinct(classes: Sequence[Sequence[str]]) -> None:
    """Refuse two classes whose names are all the same to the tokenizer."""
    _, most = _room()
    seen: dict[frozenset[tuple[int, ...]], int] = {}
    for i, synonyms in enumerate(classes):
        first = seen.setdefault(frozenset(_tokens(name)[:most] for name in synonyms), i)
        if first != i:
            one, other = (shorten(repr(", ".join(names))) for names in (classes[first], synonyms))
            same = "CLIP cannot tell them apart" if one != other else "they are the same"
            raise CATSegError(
                f"Classes {first} and {i} are {one} and {other}: {same}, and the "
                "second would never win. Leave one out, or make them synonyms of one class."
            )


@functools.lru_cache(maxsize=1 << 16)
def _tokens(name: str) -> tuple[int, ...]:
    """Return CLIP's tokens of a name, as many as there are."""
    return tuple(_tokenizer().encode(name))


@functools.cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds; few who import us need it

    return SimpleTokenizer()


@functools.cache
def _room() -> tuple[int, int]:
    """Return how many tokens of a name CLIP reads in the longest and in the shortest prompt."""
    from cat_seg.modeling.prompt_templates import get_templates

    prompts = [*get_templates("imagenet"), *get_templates("single")]
    before = [len(_tokens(prompt[: prompt.index("{}")].strip())) for prompt in prompts]
    return _TEXT_TOKENS - max(before), _TEXT_TOKENS - min(before)


def _is_file(path: Path) -> bool:
    """Tell whether there is a regular file, whatever the path looks like."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or holds a zero byte
        return False


def _load_safetensors(path: Path) -> Vocabulary:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            vocabulary = Vocabulary.parse(json.loads((file.metadata() or {})["vocabulary"]))
            if "features" not in file.keys():
                return vocabulary
            features = file.get_tensor("features")
    except (SafetensorError, KeyError, ValueError) as error:
        raise CATSegError(f"not a vocabulary that was saved ({error}); save it again.") from error
    count = len(vocabulary) + len(vocabulary.background)
    if features.ndim != 3 or len(features) != count or not features.is_floating_point():
        raise CATSegError(
            f"its features are {features.dtype} of shape {tuple(features.shape)}; expected floats "
            f"({count}, P, D). Save it again."
        )
    return replace(vocabulary, features=features)
