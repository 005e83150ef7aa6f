"""The demo, with the small model that ships."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg import video
from cat_seg.resources import PROJECT_ROOT

spec = importlib.util.spec_from_file_location("demo", PROJECT_ROOT / "demo" / "demo.py")
assert spec and spec.loader
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
SCENE = str(PROJECT_ROOT / "demo/images/harbour.jpg")


def test_outputs_and_one_unreadable_file(tmp_path: Path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 nothing")
    arguments = ["--input", SCENE, str(broken), "--output", str(tmp_path / "out")]
    assert demo.main([*arguments, "--vocabulary", "water|sea, sky", "--device", "cpu"]) == 1
    text = capsys.readouterr()
    assert "1 picture in" in text.out and "broken.jpg" in text.err
    (labels,) = (tmp_path / "out").rglob("*_labels.png")
    found = np.asarray(Image.open(labels))
    assert set(np.unique(found)) <= {0, 1, 255} and (found == 1).mean() > 0.15
    table = json.loads(labels.with_suffix(".json").read_text())
    assert table["classes"][:2] == ["water", "sky"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", " , "], "The vocabulary is empty"),
        (["--vocabulary-file", "none.txt"], "none.txt"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--output", __file__], "test_demo.py"),
        (["--device", "abacus"], "abacus"),
        (["--opts", "MODEL.WEIGHTS", "none.pth"], "none.pth"),
        (["--opts", "MODEL.WIGHTS", "a.pth"], "MODEL.WIGHTS; did you mean MODEL.WEIGHTS?"),
        (["--opts", "MODEL.WEIGHTS"], "pairs"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, capsys, arguments, message):
    known = ["--input", SCENE, "--output", str(tmp_path)]
    assert demo.main([*known, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_yaml_builds_the_same_model_through_the_plugin(tmp_path):
    arguments = ["--input", SCENE, "--device", "cpu", "--vocabulary", "water, sky"]
    yaml = ["--config-file", "configs/synthetic.yaml", "--opts", "INPUT.MIN_SIZE_TEST", "128"]
    assert demo.main([*arguments, "--output", str(tmp_path / "name")]) == 0
    assert demo.main([*arguments, "--output", str(tmp_path / "yaml"), *yaml]) == 0
    both = [Image.open(tmp_path / f / "harbour_labels.png") for f in ("name", "yaml")]
    assert (np.asarray(both[0]) == np.asarray(both[1])).all()


def test_it_runs_as_a_script_without_detectron2(tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_path('demo/demo.py', run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'detectron2' not in sys.modules and 'cat_seg.plugin' not in sys.modules"
    )
    arguments = ["-", "--input", SCENE, "--output", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "harbour_overlay.jpg").stat().st_size > 10_000


def test_a_video_as_in_detectron2s_demos(tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    frames = [Image.open(SCENE).crop((i, 0, i + 64, 64)) for i in range(2)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    arguments = ["--video-input", str(tmp_path / "in.gif"), "--vocabulary", "water, sky"]
    assert demo.main([*arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("in.mp4", "in_labels.json", "in_labels.mkv")
    }
    assert "2 frames in" in capsys.readouterr().out
    monkeypatch.setattr(video, "_CAMERAS", {sys.platform: ("none{}", "v4l2")})
    assert demo.main(["--webcam", "--output", str(tmp_path / "out")]) == 1
    assert "Camera 0" in capsys.readouterr().err
