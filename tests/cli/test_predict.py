"""cat-seg predict: what is read, written, skipped and told, with a model that sees brightness."""

import errno
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cat_seg.cli import predict as module
from cat_seg.cli.ledger import Ledger
from cat_seg.cli.main import main
from cat_seg.cli.predict import _pictures
from cat_seg.errors import CATSegError
from cat_seg.images import read
from cat_seg.inference import InferencePlan
from cat_seg.segmentation import Segmentation
from cat_seg.vocabulary import Vocabulary

NONE = "None of the words seem to be in this picture."


class Brightness:
    """A model by whose measure the first word is dark, the last one bright, black nothing."""

    def __init__(self, words=("dark", "light"), photographs=True):
        self.default_words = words
        self.card = {"name": "brightness", "photographs": photographs}
        self.seen: list[str] = []

    def vocabulary(self, words, *, background=()):
        return Vocabulary.parse(words, background=background)

    def predict(self, picture, vocabulary, *, threshold=None, refine=None):
        pixels = read(picture)
        self.seen.append(Path(picture).name)
        classes = [*vocabulary.names, *vocabulary.background]
        grey = pixels.mean(2) / 255
        labels = np.rint(grey * (len(classes) - 1)).astype(int)
        labels[grey < (threshold or 0)] = -1
        return Segmentation(
            labels=labels,
            scores=grey,
            classes=classes,
            image=pixels,
            path=str(picture),
            background=vocabulary.background,
            notes=[NONE] if (labels < 0).all() else [],
        )


@pytest.fixture
def model(monkeypatch) -> Brightness:
    fake = Brightness()
    monkeypatch.setattr(module, "load_model", lambda args: fake)
    return fake


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for name in ("a.png", "b.jpg", "sub/a.png"):
        draw(folder / name)
    return folder


def draw(path: Path, left: int = 0, right: int = 255) -> Path:
    values = np.full((40, 60, 3), left, np.uint8)
    values[:, 30:] = right
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in ("cat-seg.jsonl", ".cat-seg.lock"))


def of(*stems: str) -> list[str]:
    return sorted(f"{s}_{e}" for s in stems for e in ("labels.json", "labels.png", "overlay.jpg"))


def test_outputs_mirror_the_tree_of_the_inputs(model, photos, capsys):
    assert predict("photos", "--words", "night|dark, day", "--output", "out") == 0
    assert files(Path("out")) == of("a", "b", "sub/a")
    labels = np.asarray(Image.open("out/a_labels.png"))
    assert (labels[:, :30] == 0).all() and (labels[:, 30:] == 1).all()
    about = json.loads(Path("out/sub/a_labels.json").read_text())
    assert about["classes"] == ["night", "day"] and about["image"] == "photos/sub/a.png"
    text = capsys.readouterr()
    assert "photos/a.png: night 50%, day 50%" in text.out and "3 pictures in" in text.out
    assert not text.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vocabulary", "night|dark, day"],
        ["--words-file", "words.txt"],
        ["--vocabulary-file", "words.txt"],
    ],
)
def test_words_come_from_the_command_line_or_a_file(model, photos, arguments):
    Path("words.txt").write_text("\ufeffnight, dark\r\nday\r\n", encoding="utf-8")
    assert predict("photos/a.png", *arguments) == 0
    assert json.loads(Path("output/a_labels.json").read_text())["classes"] == ["night", "day"]


def test_the_models_own_words_and_a_background(model, photos, capsys):
    assert predict("photos/b.jpg", "--background", "grey, white") == 0
    about = json.loads(Path("output/b_labels.json").read_text())
    assert about["classes"] == ["dark", "light", "grey", "white"]
    assert "dark 50%, background 50%" in capsys.readouterr().out


def test_a_model_without_words_asks_for_them(model, photos, capsys):
    model.default_words = ()
    assert predict("photos") == 1
    assert 'name them, as in --words "cat' in capsys.readouterr().err


def test_what_is_done_is_done_again_only_by_other_means(model, photos, capsys):
    run = ["photos", "--words", "night, day"]
    assert predict(*run) == 0 and len(model.seen) == 3
    assert predict(*run) == 0 and len(model.seen) == 3
    assert "3 done before" in capsys.readouterr().out
    assert predict(*run[:2], "night, dawn, day") == 0 and len(model.seen) == 6
    assert predict(*run[:2], "night, dawn, day", "--threshold", 0.5) == 0 and len(model.seen) == 9
    assert predict(*run, "--model", "other") == 0 and len(model.seen) == 12
    assert predict(*run, "--model", "other", "--overwrite") == 0 and len(model.seen) == 15
    draw(photos / "a.png", 255, 0)
    assert predict(*run, "--model", "other") == 0
    assert model.seen[15:] == ["a.png"]


def test_what_is_done_is_done_again_by_another_version_or_weights(model, photos, monkeypatch):
    run = ["photos/b.jpg", "--model", "own.pth"]
    Path("own.pth").write_bytes(b"weights")
    assert predict(*run) == 0 and len(model.seen) == 1
    Path("own.pth").write_bytes(b"other weights")
    assert predict(*run) == 0 and len(model.seen) == 2
    monkeypatch.setattr(module, "__version__", "0.0.0")
    assert predict(*run) == 0 and len(model.seen) == 3
    assert predict(*run) == 0 and len(model.seen) == 3


def test_what_is_done_is_done_again_by_another_yaml(model, photos):
    run = ["photos/b.jpg", "--config-file", "own.yaml"]
    Path("own.yaml").write_text("_BASE_: base.yaml\n")
    Path("base.yaml").write_text("INPUT: {MIN_SIZE_TEST: 128}\nMODEL: {WEIGHTS: own.pth}\n")
    assert predict(*run) == 0 and len(model.seen) == 1
    assert predict(*run, "--device", "cpu") == 0 and len(model.seen) == 1
    Path("base.yaml").write_text("INPUT: {MIN_SIZE_TEST: 256}\nMODEL: {WEIGHTS: own.pth}\n")
    assert predict(*run) == 0 and len(model.seen) == 2
    Path("own.pth").write_bytes(b"weights")
    assert predict(*run) == 0 and len(model.seen) == 3


def test_an_interrupted_run_goes_on(model, photos, monkeypatch, capsys):
    save = Segmentation.save
    monkeypatch.setattr(Segmentation, "save", lambda *arguments: interrupt(save, *arguments))
    assert predict("photos") == 130
    assert files(Path("output")) == ["a_overlay.jpg"]
    with open("output/cat-seg.jsonl", "a") as ledger:
        ledger.write('{"output": "b", "fi')  # and the machine lost its power
    monkeypatch.setattr(Segmentation, "save", save)
    assert predict("photos") == 0
    assert files(Path("output")) == of("a", "b", "sub/a")
    before = len(model.seen)
    assert predict("photos") == 0 and len(model.seen) == before


def interrupt(save, result, folder, stem):
    """Save the first of the three files, and die."""
    for path in save(result, folder, stem)[1:]:
        path.unlink()
    raise KeyboardInterrupt


def test_files_that_cat_seg_did_not_write_are_left(model, photos, capsys):
    own = draw(Path("output/a_overlay.jpg"))
    before = own.read_bytes()
    assert predict("photos", "--overwrite") == 1
    assert own.read_bytes() == before
    assert files(Path("output")) == ["a_overlay.jpg", *of("b", "sub/a")]
    assert "a_overlay.jpg is there already" in capsys.readouterr().err
    # nor are those that somebody has worked on since
    Path("output/b_labels.json").write_text("{}")
    assert predict("photos/b.jpg", "--overwrite") == 1
    assert Path("output/b_labels.json").read_text() == "{}"


def test_what_a_crash_left_empty_is_done_again(model, photos):
    assert predict("photos") == 0 and len(model.seen) == 3
    whole = Path("output/b_labels.png").read_bytes()
    Path("output/b_labels.png").write_bytes(b"")
    assert predict("photos") == 0 and model.seen[3:] == ["b.jpg"]
    assert Path("output/b_labels.png").read_bytes() == whole


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    (tmp_path / ".cat-seg.0123456789abcdef.jpg").touch()  # left by a kill
    with Ledger(tmp_path), pytest.raises(CATSegError, match="another run writes there"):
        Ledger(tmp_path).__enter__()
    with Ledger(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {"cat-seg.jsonl", ".cat-seg.lock"}


def test_a_line_of_the_ledger_that_was_changed_is_not_believed(tmp_path):
    path = tmp_path / "a.png"
    with Ledger(tmp_path) as ledger:
        ledger.begin(Path("a"), [path])
        path.write_bytes(b"1")
        ledger.finish(Path("a"), [path], {"settings": "x"}, {"areas": {"cat": 0.5}})
    assert Ledger(tmp_path).result(Path("a"), {"settings": "x"}) == {"areas": {"cat": 0.5}}
    record = tmp_path / "cat-seg.jsonl"
    record.write_text(record.read_text().replace("0.5", "0.7"))
    assert Ledger(tmp_path).result(Path("a"), {"settings": "x"}) is None


@pytest.mark.parametrize("letter", ["x", "é"])
def test_names_as_long_as_they_can_be(tmp_path, monkeypatch, letter):
    monkeypatch.chdir(tmp_path)
    stems = [letter * (250 // len(letter.encode()) - 1) + end for end in "ab"]
    for stem in stems:
        Image.new("RGB", (8, 8)).save(f"{stem}.png")
    outputs = [output for _, output in _pictures([str(tmp_path)])]
    assert len(set(outputs)) == 2
    for output in outputs:
        output.with_name(f"{output.name}_overlay.jpg").touch()


def test_a_ledger_that_is_not_ours_is_left(model, photos, capsys):
    Path("output").mkdir()
    Path("output/cat-seg.jsonl").write_text("mine\n")
    assert predict("photos") == 1
    assert files(Path("output")) == [] and not model.seen
    assert "cat-seg.jsonl is not the record" in capsys.readouterr().err


def test_own_outputs_are_no_inputs(model, photos, capsys):
    assert predict("photos", "--output", "photos") == 0
    assert predict(".", "--output", "photos/other") == 0
    assert model.seen == ["a.png", "b.jpg", "a.png"] * 2
    assert predict("photos/a_overlay.jpg", "--output", "third") == 0  # but for one that is named
    Path("empty").mkdir()
    for name in ("a_overlay.jpg", "a_labels.png"):
        (photos / name).rename(Path("empty") / name)
    assert predict("empty", "--output", "fourth") == 0
    assert len(model.seen) == 9  # moved elsewhere, they are pictures like any other


def test_one_bad_picture_does_not_end_the_run(model, photos, capsys):
    (photos / "aa.jpg").write_bytes(b"\xff\xd8 nothing")
    assert predict("photos", "absent.jpg", "no*.png") == 1
    text = capsys.readouterr()
    assert "3 pictures in" in text.out
    told = [line for line in text.err.splitlines() if line.startswith("Left out: ")]
    assert len(told) == 3 and "aa.jpg" in text.err
    assert "absent.jpg does not exist" in text.err and "no*.png matches no file" in text.err
    assert predict("photos") == 1  # and what is done stays done
    assert len(model.seen) == 3


def test_wrong_paths_are_told_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_model", lambda args: pytest.fail("loaded"))
    Path("folder").mkdir()
    assert predict("absent.jpg", "folder") == 1
    assert not Path("output").exists()
    error = capsys.readouterr().err
    assert "absent.jpg does not exist" in error and "folder is a folder without images" in error
    assert predict("https://example.com/a.jpg") == 1
    assert "https://example.com/a.jpg is an address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--words", " , "], "--words: The vocabulary is empty"),
        (["--words", "cat, dog, cat"], "Classes 0 and 2 are 'cat' and 'cat'"),
        (["--words", "cat", "--background", "wall, cat"], "'cat' and 'cat'"),
        (["--words-file", "none.txt"], "--words-file: none.txt: no such file"),
        (["--output", "photos/a.png"], "--output photos/a.png: File exists; expected a folder"),
    ],
)
def test_mistakes_are_told_in_a_sentence(model, photos, capsys, arguments, message):
    assert predict("photos", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("cat-seg predict: ")
    assert len(error.splitlines()) == 1 and not model.seen


@pytest.mark.parametrize(
    "arguments", [["--threshold", "2"], ["--threshold", "x"], ["--words", "a", "--words-file", "b"]]
)
def test_wrong_usage_exits_with_two(photos, arguments):
    with pytest.raises(SystemExit) as ended:
        predict("photos", *arguments)
    assert ended.value.code == 2


def test_other_errors_keep_their_traceback(model, photos, monkeypatch):
    monkeypatch.setattr(model, "predict", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict("photos")


def test_none_of_the_words_is_told_once(model, photos, capsys):
    draw(photos / "black.png", 0, 0)
    draw(photos / "blacker.png", 0, 0)
    assert predict("photos", "--threshold", "0.1") == 0
    text = capsys.readouterr().out
    assert f"{NONE} (black.png, blacker.png)" in text and text.count(NONE) == 1
    assert "black.png: none of these 100%" in text
    assert predict("photos", "--threshold", "0.1") == 0  # also of what was done before
    assert f"{NONE} (black.png, blacker.png)" in capsys.readouterr().out
    assert predict("photos/black.png", "--threshold", "0.1", "--output", "other") == 0
    assert f"{NONE}\n" in capsys.readouterr().out  # there is but one


@pytest.mark.parametrize("photographs", [True, False])
def test_which_model_knows_photographs_is_told(model, photos, capsys, photographs):
    model.card["photographs"] = photographs
    assert predict("photos") == 0
    assert ("--model large-2024" in capsys.readouterr().out) is not photographs


def test_json_is_a_line_a_picture(model, photos, capsys):
    (photos / "broken.jpg").write_bytes(b"nothing")
    assert predict("photos", "--json") == 1
    text = capsys.readouterr()
    lines = {line["image"]: line for line in map(json.loads, text.out.splitlines())}
    assert sorted(lines) == sorted(
        f"photos/{n}" for n in ("a.png", "b.jpg", "broken.jpg", "sub/a.png")
    )
    assert lines["photos/a.png"]["areas"] == {"dark": 0.5, "light": 0.5}
    assert lines["photos/a.png"]["files"][0] == "output/a_overlay.jpg"
    assert "broken.jpg" in lines["photos/broken.jpg"]["error"]
    assert "3 pictures in" in text.err
    assert predict("photos", "--json") == 1
    again = {line["image"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert again == lines


def test_memory_may_be_bounded(model, photos):
    model.plan = InferencePlan()
    assert predict("photos/a.png", "--memory", "2000") == 0
    assert model.plan.memory == 2_000_000_000


def test_the_original_stands_beside(model, photos):
    assert predict("photos/a.png", "--output", "one") == 0
    assert predict("photos/a.png", "--output", "two", "--original") == 0
    width = [Image.open(f"{folder}/a_overlay.jpg").width for folder in ("one", "two")]
    assert width[1] > width[0] + 400


@pytest.mark.skipif(os.name == "nt", reason="names there are Unicode")
def test_names_that_are_no_text(model, photos, capsys):
    strange = os.fsdecode(b"caf\xe9.png")
    draw(photos / strange)
    draw(photos / "\x1b[2Jclear\n.png", 0, 0)
    assert predict("photos", "--threshold", "0.1") == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and r"\x1b[2Jclear\n.png" in text and r"caf\udce9.png" in text
    about = json.loads(Path("output", os.fsdecode(b"caf\xe9_labels.json")).read_text("utf-8"))
    assert about["image"] == r"photos/caf\udce9.png"
    assert predict("photos", "--threshold", "0.1") == 0
    assert "5 done before" in capsys.readouterr().out


def test_a_full_disk_ends_the_run(model, photos, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Segmentation, "save", full)
    assert predict("photos") == 1
    assert len(model.seen) == 1
    error = capsys.readouterr().err
    assert "output/a: cannot be written (No space left on device)" in error
    assert "which was not tried" in error


@pytest.mark.parametrize("room", [0, 30, 300])
def test_a_ledger_without_room_is_written_when_there_is_some(model, photos, capsys, room):
    resource = pytest.importorskip("resource")  # of POSIX
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        assert predict("photos") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert predict("photos") == 0
    assert files(Path("output")) == of("a", "b", "sub/a")


def test_a_picture_that_needs_too_much_memory_ends_nothing_else(model, photos, monkeypatch, capsys):
    save = Segmentation.save

    def full(result, folder, stem):
        if stem == "a":
            raise MemoryError
        save(result, folder, stem)

    monkeypatch.setattr(Segmentation, "save", full)
    assert predict("photos") == 1
    assert len(model.seen) == 3
    assert "a.png: needs more memory than there is" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_ends_nothing_else(model, photos, capsys):
    Path("output").mkdir()
    Path("output/sub").write_text("a file in the place of a folder")
    assert predict("photos") == 1
    assert set(of("a", "b")) < set(files(Path("output")))
    assert "output/sub/a: cannot be written" in capsys.readouterr().err


def test_warnings_are_shown(model, photos, monkeypatch, capsys):
    def predict_and_warn(*args, **options):
        logging.getLogger("cat_seg.fonts").warning("No font has %s", "\x1b[0m")
        return Brightness.predict(model, *args, **options)

    monkeypatch.setattr(model, "predict", predict_and_warn)
    assert predict("photos/a.png") == 0
    assert r"No font has \x1b[0m" in capsys.readouterr().err


def test_models_are_found_by_name_or_by_yaml(monkeypatch):
    import cat_seg.model
    from cat_seg import plugin

    monkeypatch.setattr(plugin, "load_model", lambda *args: ("yaml", *args))
    monkeypatch.setattr(
        cat_seg.model.CATSeg, "from_pretrained", lambda source, device: ("name", source, device)
    )

    def ask(model=None, config_file=None, opts=()):
        return module.load_model(
            SimpleNamespace(model=model, config_file=config_file, opts=list(opts), device="cpu")
        )

    assert ask() == ("name", "synthetic", "cpu")
    assert ask("large-2024") == ("name", "large-2024", "cpu")
    assert ask(None, "a.yaml", ["K", "V"]) == ("yaml", "a.yaml", ["K", "V"], "cpu")
    assert ask(opts=["K", "V"])[1] == "configs/synthetic.yaml"
    with pytest.raises(CATSegError, match="--config-file instead of --model"):
        ask("large-2024", None, ["K", "V"])
