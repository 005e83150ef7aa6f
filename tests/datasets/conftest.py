"""The scripts of datasets/, run in this process on small trees."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $DETECTRON2_DATASETS."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def script(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `datasets/<name>.py *arguments` and returns its exit code."""

    def run(name: str, *arguments: str) -> int:
        monkeypatch.syspath_prepend(str(DATASETS))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module = importlib.import_module(name)
        if name.startswith("prepare_"):
            return module.main(module.prepare, module.__doc__)
        return module.main()

    return run
