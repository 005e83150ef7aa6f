"""What the README and the docs show is there: Python that runs, files, options, keys, figures."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSeg, list_models
from docs.tools.site import DOCS, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "configs/README.md"]
PAGES += sorted(set(DOCS.glob("*.md")) - {DOCS / "index.md"})
BENCHMARKS = ("A-847", "PC-459", "A-150", "PC-59", "PAS-20", "PAS-20b")  # as in published.json
MADE = ("datasets/synthetic", "datasets/ADEChallengeData2016")  # by commands of the docs
OTHERS = ("pip ", "python -m pip", "docker ", "git ", "mkdocs ", "torchrun", "srun")  # not ours
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def sources() -> str:
    folders = ("cat_seg", "datasets", "demo", "docs/tools")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "train_net.py", ROOT / "tests/campaign.py"]
    return "\n".join(path.read_text("utf-8") for path in files)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md"])
def test_the_first_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    exec(blocks(ROOT / page, "python")[0], {})
    names = {path.suffix for path in (tmp_path / "output").iterdir()}
    assert names == {".jpg", ".png", ".json"}


def test_the_picture_is_what_the_command_draws():
    result = CATSeg.from_pretrained("synthetic", "cpu").predict(ROOT / "demo/images/beach.jpg")
    drawn = np.asarray(result.plot(original=True), np.float32)
    shown = np.asarray(Image.open(DOCS / "synthetic.jpg"), np.float32)
    if drawn.shape != shown.shape:  # the legend's width is the font's, which is Pillow's
        drawn, shown = (array[:800, :1600] for array in (drawn, shown))
    assert np.abs(drawn - shown).mean() < 6


def test_the_table_of_models_is_that_of_the_library():
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    header, _, *cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    shown = {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in cells}
    published = {model.name: model for model in list_models() if model.address}
    assert set(shown) == set(published)
    for name, model in published.items():
        row = shown[name]
        assert (row["CLIP"], row["guidance"]) == (model.encoder, model.guidance)
        assert row["parameters"] == f"{model.parameters / 1e6:.0f} M"
        assert [float(row[name]) for name in BENCHMARKS] == list(model.miou.values())


@every_page
def test_files_that_are_named_are_there(page: Path):
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))
    pattern = r"(?<![\w./-])(?:cat_seg|configs|datasets|demo|docs|tests|\.ci|\.github)/[\w./*-]*\w"
    for path in set(re.findall(pattern, text)):
        assert path.startswith(MADE) or "NAME" in path or any(ROOT.glob(path)), (
            f"{page.name} names {path}"
        )


@every_page
def test_modules_and_names_that_are_named_are_there(page: Path):
    for name in set(re.findall(r"(?<![\w./])cat_seg(?:\.\w+)+", page.read_text(encoding="utf-8"))):
        pkgutil.resolve_name(name)


@every_page
def test_options_that_are_named_are_there(page: Path, sources: str):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    options = {
        option
        for line in "\n".join(code).replace("`", "").splitlines()
        if not line.lstrip().startswith(OTHERS)
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", line.partition(" #")[0])
    } - {"--user", "--bind"}  # of docker, of http.server
    for option in options:
        assert f'"{option}"' in sources, f"{page.name} names {option}"


@every_page
def test_keys_that_are_named_are_there(page: Path):
    from cat_seg.plugin import load_config

    cfg = load_config("configs/synthetic.yaml")
    sections = "|".join(key for key, value in cfg.items() if hasattr(value, "items"))
    text = page.read_text(encoding="utf-8")
    for key in set(re.findall(rf"\b(?:{sections})(?:\.[A-Z0-9_]+)+\b", text)):
        value = cfg
        for part in key.split("."):
            assert part in value, f"{page.name} names {key}"
            value = value[part]


@every_page
def test_anchors_that_are_linked_are_there(page: Path):
    text = page.read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)#([^)\s]+)\)", text):
        target = (page.parent / path if path else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in titles}
        assert anchor in slugs, f"{page.name} links to #{anchor}"
