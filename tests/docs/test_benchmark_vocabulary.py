"""The benchmark of large vocabularies: its ways and rules run, agree where they must, are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional as F

from cat_seg.modeling.aggregator.correlation import cluster
from docs.tools import benchmark_vocabulary as tool


def run(command: str, file: Path, *options: str) -> list[dict]:
    assert tool.main([command, "--json", str(file), *options]) == 0
    return json.loads(file.read_text())["results"]


def test_rules_choose_as_many_and_weigh_all():
    torch.manual_seed(0)
    features = F.normalize(torch.randn(4, 4, 8), dim=-1)
    means = F.normalize(torch.randn(30, 8), dim=-1)
    owner = cluster(means, 5)
    for name, (rule, _) in tool.rules(5).items():
        kept = rule(features, means, 6, owner)
        assert len(kept.classes) == 6 and not set(kept.classes.tolist()) & set(kept.others.tolist())
        if "dropped" in name:
            assert not len(kept.others)
        elif "all" in name:
            assert len(kept.others) == 24 and kept.weights is None
        else:
            assert kept.weights is not None and kept.weights.sum() == pytest.approx(30)
            assert len(kept.weights) == 6 + len(kept.others) <= 11


@pytest.mark.slow
def test_costs_are_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        tool, "WAYS", {**tool.WAYS, "represented": {"max_classes": 8, "representatives": 4}}
    )
    options = ["--random", "--classes", "40", "--repeat", "1", "--memory", "--flops"]
    options += ["--image-size", "64", "96", "--ways", "kept", "streamed", "represented"]
    kept, streamed, represented = run("cost", tmp_path / "cost.json", *options)
    for found in (kept, streamed, represented):
        assert sum(found["stage_cpu_seconds"].values()) == pytest.approx(found["cpu_seconds"])
        assert min(found["stage_cpu_seconds"][s] for s in ("embedding", "spatial", "class")) > 0
        assert found["peak_bytes"] > 0
    assert kept["counted_bytes"] == 40 * 4 * 64 * (16 + 5 * 16)
    assert represented["flop"] < kept["flop"] < streamed["flop"]
    assert represented["stage_cpu_seconds"]["choice"] > 0
    assert tool.main(["plot", str(tmp_path / "cost.svg"), str(tmp_path / "cost.json")]) == 0
    assert "represented" in "".join(ElementTree.parse(tmp_path / "cost.svg").getroot().itertext())


@pytest.mark.slow
def test_merging_and_labels_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool, "MERGED", {20: [(300, 400)]})
    (merged,) = run("merging", tmp_path / "merging.json", "--scenes", "1")
    assert merged["same"] and set(merged["cpu_seconds"]) == {"bounds", "all maps"}
    options = ["--classes", "90", "--scenes", "1", "--settings", "40+10"]
    found = run("labels", tmp_path / "labels.json", *options)
    changed = {one["rule"]: one["changed"] for one in found}
    assert set(changed) == {"all", *tool.rules(1)} and changed["all"] == 0
    assert changed["probability, all in the sums"] <= changed["probability, dropped"]
    assert tool.main(["plot", str(tmp_path / "x.svg"), str(tmp_path / "labels.json")]) == 0
    assert "90 words" in "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
