"""cat-seg doctor."""

import importlib.util
import json
import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import cat_seg
from cat_seg.cli import doctor
from cat_seg.cli.main import main


@pytest.fixture(autouse=True)
def no_connection(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connected"))


def test_the_report_says_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a").write_bytes(bytes(2000))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["CAT-Seg"]["version"] == cat_seg.__version__
    assert report["packages"]["torch"] == metadata.version("torch")
    assert report["caches"][str(tmp_path / "text")] == "2.0 kB in 1 files"
    assert "cores" in report["device"]["cpu"] and report["device"]["chosen"]
    assert report["names drawn in"]["Latin"] == "yes"
    assert "--online" in report["network"]["reached"]
    assert not [lines["problem"] for lines in report.values() if "problem" in lines]


def test_the_report_is_read_by_people_too(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_caches", lambda: {"\x1b[2J": "5 kB"})
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"  version                  {cat_seg.__version__}\n" in text
    assert "\x1b" not in text


def test_a_look_that_fails_is_told(monkeypatch):
    def broken():
        raise OSError("libcudart.so.99: cannot open shared object file")

    monkeypatch.setattr(doctor, "_device", broken)
    report = doctor.examine()
    assert report["device"] == {
        "problem": "OSError: libcudart.so.99: cannot open shared object file"
    }
    assert report["memory"]


def test_detectron2_real_missing_broken_or_a_folder(monkeypatch):
    def found(spec):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        return doctor._detectron2()

    assert "the stand-in that ships" in found(None)["installed"]
    folder = SimpleNamespace(origin=None, submodule_search_locations=["/x/detectron2"])
    assert "in the way: /x/detectron2" in found(folder)["installed"]
    real = SimpleNamespace(origin="/y/detectron2/__init__.py")
    with monkeypatch.context() as patch:
        patch.setattr(doctor.importlib, "import_module", lambda name: None)
        assert found(real)["folder"] == str(Path("/y/detectron2")) and "problem" not in found(real)

    def undefined(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(doctor.importlib, "import_module", undefined)
    assert "undefined symbol" in found(real)["problem"]


def test_missing_extras_come_with_the_command(monkeypatch):
    requires = [
        "torch>=2.6",
        'pytest>=7.4; extra == "test"',
        'numpy>=1; extra == "plot"',
        'no-such-package>=3; extra == "plot"',
        'numpy; extra == "other"',
        'cat-seg[plot]; extra == "all"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    assert doctor._optional() == {
        "plot": "missing: pip install 'no-such-package>=3'",
        "other": "installed",
    }


def test_scripts_without_a_font_come_with_the_package(monkeypatch):
    from cat_seg import fonts

    fonts.can_draw.cache_clear()
    fonts._tell.cache_clear()
    monkeypatch.setattr(fonts, "_font_of", lambda character: None)
    try:
        found = doctor._fonts()
    finally:
        fonts.can_draw.cache_clear()
        fonts._tell.cache_clear()
    assert found["Chinese"].startswith("no. ") and "fonts-noto-cjk" in found["Chinese"]


def test_a_connection_is_opened_only_if_asked(monkeypatch):
    def refuse(address, timeout):
        raise OSError("no route")

    monkeypatch.setattr(doctor, "urlopen", refuse)
    assert doctor.examine(online=True)["network"]["reached"].startswith("no (no route)")
