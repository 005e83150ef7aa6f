"""Small data that both implementations work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.compat.implementations import IMPLEMENTATIONS, Implementation

CLASSES = ["sky", "tree", "road-side", "cat"]


@pytest.fixture(params=IMPLEMENTATIONS)
def d2(request: pytest.FixtureRequest) -> Implementation:
    """Each detectron2 that there is."""
    return Implementation(request.param)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Five images of several sizes with label maps; 255 is ignored, class 3 is never true."""
    folder: Path = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    samples = []
    for i, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (33, 70), (64, 48)]):
        small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        labels = rng.choice([0, 1, 2, 255], (height // 8, width // 8)).astype(np.uint8)
        label_map = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        image.save(folder / f"{i}.png")
        label_map.save(folder / f"{i}_labels.png")
        samples.append(
            {
                "file_name": str(folder / f"{i}.png"),
                "sem_seg_file_name": str(folder / f"{i}_labels.png"),
            }
        )
    return samples


@pytest.fixture
def register(scenes: list[dict[str, Any]]) -> Any:
    """Registers the scenes as "compat_scenes" with an implementation."""
    done: list[Any] = []

    def register_with(d2: Implementation) -> str:
        data = d2("data")
        data.DatasetCatalog.register("compat_scenes", lambda: scenes)
        data.MetadataCatalog.get("compat_scenes").set(stuff_classes=CLASSES, ignore_label=255)
        done.append(data)
        return "compat_scenes"

    yield register_with
    for data in done:
        data.DatasetCatalog.remove("compat_scenes")
        data.MetadataCatalog.remove("compat_scenes")


Register = Callable[[Implementation], str]
