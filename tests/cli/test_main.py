"""cat-seg itself, and what is common to its subcommands."""

import errno
import json
import logging
import os
import subprocess
import sys

import pytest

import cat_seg
from cat_seg.cli.main import COMMANDS, main
from cat_seg.cli.terminal import run, size
from cat_seg.errors import CATSegError
from cat_seg.utils.text import as_text, printable


@pytest.mark.parametrize("arguments", [["--help"], [], ["predict", "--help"]])
def test_help_needs_no_torch(arguments):
    code = (
        "import sys; from cat_seg.cli.main import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'cat_seg.plugin', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: cat-seg" in done.stdout


def test_python_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "cat_seg", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"cat-seg {cat_seg.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: cat-seg {command} " in capsys.readouterr().out


def test_unknown_commands_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["segment"])
    assert ended.value.code == 2
    assert "'segment'" in capsys.readouterr().err


def test_users_mistakes_become_a_sentence_and_others_do_not(capsys):
    def fail(error):
        raise error

    assert run("tool", lambda: fail(CATSegError("a\x1b.jpg: no such file."))) == 1
    assert capsys.readouterr().err == "tool: a\\x1b.jpg: no such file.\n"
    assert run("tool", lambda: fail(KeyboardInterrupt())) == 130
    with pytest.raises(ValueError, match="bug"):
        run("tool", lambda: fail(ValueError("bug")))
    with pytest.raises(ModuleNotFoundError):
        run("tool", lambda: fail(ModuleNotFoundError("", name="cat_seg.typo")))


def test_what_is_wrong_with_an_import_is_told_too(monkeypatch, capsys):
    def broken(name):
        raise CATSegError("detectron2 is a folder in the way.")

    monkeypatch.setattr("importlib.import_module", broken)
    assert main(["evaluate"]) == 1
    assert capsys.readouterr().err == "cat-seg evaluate: detectron2 is a folder in the way.\n"


def test_a_reader_that_has_gone_is_no_error():
    code = (
        "import sys; from cat_seg.cli.terminal import run\n"
        "sys.exit(run('tool', lambda: print('line\\n' * 100_000) or 0))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café 猫.jpg", "café 猫.jpg"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb", r"a\nb"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        (b"\xff.jpg".decode("utf-8", "surrogateescape"), r"\udcff.jpg"),
        ("a\\b", "a\\b"),
    ],
)
def test_control_codes_are_shown_as_escapes(name, shown):
    assert printable(name) == shown
    assert as_text(name).encode("utf-8")


def test_sizes():
    assert [size(n) for n in (0, 999, 1500, 25_000_000, 10**13)] == [
        *("0 B", "999 B", "1.5 kB", "25 MB", "10 TB")
    ]


def test_models_are_listed(capsys):
    from cat_seg import list_models

    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(model.name in text for model in list_models())
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["large-2024"]["mIoU"]["ade20k_150_test_sem_seg"] == 37.9
    assert rows["synthetic"]["photographs"] is False


def test_words_are_shown_as_they_are_understood(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("0: cat\n1: sofa, couch\n")
    assert main(["words", str(tmp_path / "names.txt")]) == 0
    assert "1  sofa   couch" in capsys.readouterr().out
    assert main(["words", str(tmp_path / "names.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [["cat"], ["sofa", "couch"]]
    assert main(["words", str(tmp_path / "none.txt")]) == 1
    assert "none.txt: no such file" in capsys.readouterr().err


def test_a_full_disk_is_one_line(capsys):
    def fills():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/labels.png")

    assert run("cat-seg", fills) == 1
    assert capsys.readouterr().err == (
        "cat-seg: out/labels.png cannot be written (No space left on device)\n"
    )
    with pytest.raises(PermissionError):
        run("cat-seg", _denied)


def test_a_log_without_room_is_told_once(capsys):
    class Full(logging.StreamHandler):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    def work():
        logger = logging.Logger("tool")
        logger.addHandler(Full())
        for _ in range(3):
            logger.warning("")
        return 0

    assert run("tool", work) == 0
    error = capsys.readouterr().err
    assert error.strip() == "Lines of a log are lost (No space left on device)"


def _denied():
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "secret")
