"""Videos: frames, sound, labels without loss, votes over time."""

import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSegError, Segmentation, Vocabulary, video
from cat_seg.cli.main import main
from cat_seg.images import read
from cat_seg.palette import name_colors

av = pytest.importorskip("av")
WORDS = ("dark", "grey", "light")


class Brightness:
    """A model by whose measure the first word is dark, the last one bright."""

    default_words = WORDS
    card = {"name": "brightness", "photographs": True}  # noqa: RUF012

    def vocabulary(self, words, *, background=()):
        return Vocabulary.parse(words, background=background)

    def stream(self, source, words, *, batch_size, threshold):
        for picture in source:
            pixels = read(picture)
            classes = (*words.names, *words.background)
            grey = (pixels.mean(2) / 255).astype(np.float32)
            labels = np.rint(grey * (len(classes) - 1)).astype(np.int64)
            labels[grey < (threshold or 0)] = -1
            yield Segmentation(labels=labels, scores=grey, classes=classes, image=pixels)


def moving(count: int, height: int = 60, width: int = 80) -> list[np.ndarray]:
    """A bright square that moves to the right over a dark ground."""
    pictures = np.full((count, height, width, 3), 20, np.uint8)
    for i, picture in enumerate(pictures):
        picture[20:40, 8 * i : 8 * i + 20] = 240
    return list(pictures)


def write(path: Path, pictures: list[np.ndarray], times: list[int] | None = None, sound="") -> Path:
    """Write a video of 1/12 s a frame, with two seconds of a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.codec_context.time_base = Fraction(1, 12)
        tone = container.add_stream(sound, rate=8000, layout="mono") if sound else None
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, 16000, 1000) if tone else ():
            wave = np.sin(np.arange(start, start + 1000) * 0.3)[None]
            heard = av.AudioFrame.from_ndarray((8000 * wave).astype(np.int16), "s16", "mono")
            heard.sample_rate, heard.pts, heard.time_base = 8000, start, Fraction(1, 8000)
            container.mux(tone.encode(heard))
        if tone:
            container.mux(tone.encode(None))
    return path


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [round(float(frame.time), 2) for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_times_sound_and_labels_are_kept(tmp_path: Path, suffix: str):
    times = [0, 1, 2, 5, 9, 10]  # a rate that varies
    source = write(tmp_path / "in.mkv", moving(6), times, sound="flac")
    output = tmp_path / f"out{suffix}"
    done = video.segment_video(Brightness(), source, output, sound=suffix == ".mkv")
    assert (done.frames, done.left_out, done.unlabelled) == (6, 0, 0)
    assert done.areas["light"] == pytest.approx(400 / 4800)
    assert times_of(output) == times_of(source) == [round(t / 12, 2) for t in times]
    if suffix == ".mkv":
        assert sound_of(output) == sound_of(source) != []
    labels = list(video.read_labels(tmp_path / "out_labels.mkv"))
    for i, one in enumerate(labels):
        assert (one[22:38, 8 * i + 2 : 8 * i + 18] == 2).all() and (one[:18] == 0).all()
    about = json.loads((tmp_path / "out_labels.json").read_text("utf-8"))
    assert about["classes"] == list(WORDS) and about["frames"] == len(labels) == 6
    assert (about["height"], about["width"]) == labels[0].shape == (60, 80)
    with av.open(str(output)) as container:
        assert len([*container.decode(video=0)]) == 6


def test_colours_come_through_and_do_not_change_with_what_else_is_there(tmp_path: Path):
    pictures = [np.full((240, 320, 3), 20, np.uint8) for _ in range(3)]
    pictures[1][:120] = 128
    source = write(tmp_path / "in.mp4", pictures)
    video.segment_video(Brightness(), source, tmp_path / "out.mp4", opacity=1.0)
    shown = [frame[-20:, -60:].mean((0, 1)) for frame in video.frames(tmp_path / "out.mp4")]
    assert np.abs(np.array(shown) - name_colors(WORDS)[0]).max() < 6


def test_odd_sides_no_class_and_no_more_than_asked(tmp_path: Path):
    frames = [Image.fromarray(p[:59, :79]) for p in moving(5)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=50)
    output = tmp_path / "out.mp4"
    done = video.segment_video(
        Brightness(), tmp_path / "in.gif", output, threshold=0.5, most_frames=3
    )
    assert done.frames == 3 and done.unlabelled > 0.9
    assert times_of(output) == [0, 0.05, 0.1]
    labels = list(video.read_labels(tmp_path / "out_labels.mkv"))
    assert labels[0].shape == (59, 79) and set(np.unique(labels[0])) == {-1, 2}


def test_many_classes_have_16_bits(tmp_path: Path):
    words = [f"word {i}" for i in range(300)]
    source = write(tmp_path / "in.mp4", moving(2))
    video.segment_video(Brightness(), source, tmp_path / "out.mkv", words, threshold=0.5)
    labels = next(video.read_labels(tmp_path / "out_labels.mkv"))
    assert labels.max() > 255 and labels.min() == -1


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_an_animated_picture_is_a_stream(tmp_path: Path, suffix: str):
    frames = [Image.fromarray(picture) for picture in moving(3)]
    path = tmp_path / f"in{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert video.is_video(path)
    found = list(video.frames(path))
    assert len(found) == 3 and all(
        frame[30, 8 * i + 10].min() > 200 for i, frame in enumerate(found)
    )
    frames[0].save(path)
    assert not video.is_video(path)


def test_a_phone_held_upright(tmp_path: Path):
    source = write(tmp_path / "in.mp4", moving(2))
    with av.open(str(source)) as given, av.open(str(tmp_path / "turned.mp4"), "w") as turned:
        stream = turned.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(-90)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                turned.mux(packet)
    frame = next(video.frames(tmp_path / "turned.mp4"))
    assert frame.shape == (80, 60, 3)
    # Clockwise: what was on the left is above.
    assert frame[10, 30].min() > 200 and frame[60, 30].max() < 60


def results(frames: list[list[int]]) -> Iterator[Segmentation]:
    for frame in frames:
        labels = np.array([frame])
        yield Segmentation(labels=labels, scores=labels / 10, classes=WORDS)


def test_a_majority_votes():
    frames = [[0, 0, 0], [1, 2, 1], [0, 2, 0], [1, 2, 0], [1, 1, 0]]
    voted = [r.labels[0].tolist() for r in video.smooth_majority(results(frames), 3)]
    assert voted == [[0, 0, 0], [0, 2, 0], [1, 2, 0], [1, 2, 0], [1, 1, 0]]
    scores = [r.scores[0].tolist() for r in video.smooth_majority(results(frames), 3)]
    assert scores[1] == pytest.approx([0, 0.2, 0])
    assert [len([*video.smooth_majority(results(frames[:n]), 5)]) for n in range(5)] == [*range(5)]
    with pytest.raises(CATSegError, match="an odd number"):
        next(video.smooth_majority(results(frames), 2))


def test_mistakes_are_told_and_leave_nothing(tmp_path: Path):
    model, source = Brightness(), write(tmp_path / "in.mkv", moving(2), sound="pcm_s16le")
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXTINF:1,\nin.mkv\n#EXT-X-ENDLIST\n")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(write(tmp_path / "whole.mp4", moving(2)).read_bytes()[:300])
    for given, output, message in [
        (tmp_path / "none.mp4", "out.mp4", "none.mp4 is no file"),
        (tmp_path / "text.mp4", "out.mp4", "text.mp4 cannot be opened as a video"),
        (cut, "out.mp4", "cut.mp4 cannot be opened as a video"),
        (source, "out.avi", "expected a name that ends in .mp4, .mkv"),
        (source, "out.webm", "which the sound is in; expected a name in .mkv"),
        ("http://127.0.0.1:1/a.mp4", "out.mp4", "is an address"),
        ("77", "out.mp4", "Camera 77 .* cannot be opened"),
    ]:
        with pytest.raises(CATSegError, match=message):
            video.segment_video(model, given, tmp_path / output)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name or path.name[0] == "."]


def test_a_broken_model_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "in.mp4", moving(4))
    monkeypatch.setattr(Segmentation, "plot", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        video.segment_video(Brightness(), source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_an_address_is_read_if_that_is_asked_for(tmp_path: Path):
    write(tmp_path / "in.mkv", moving(3))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/in.mkv"
        done = video.segment_video(Brightness(), address, tmp_path / "out.mp4", allow_url=True)
        server.shutdown()
    assert done.frames == 3


def test_an_interrupt_ends_what_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "in.mp4", moving(5))
    seen = []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.segment_video(Brightness(), source, tmp_path / "a.mp4", on_frame=interrupt)
    assert not (tmp_path / "a.mp4").exists()
    seen.clear()
    monkeypatch.setattr(video, "_LOCAL", {})
    opened = video._Decoded.__init__
    monkeypatch.setattr(
        video._Decoded, "__init__", lambda self, name, c, live: opened(self, name, c, True)
    )
    done = video.segment_video(Brightness(), source, tmp_path / "b.mp4", on_frame=interrupt)
    assert done.frames == 2 and len([*video.read_labels(tmp_path / "b_labels.mkv")]) == 2


def test_on_the_command_line(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    from cat_seg.cli import video as command

    monkeypatch.setattr(command, "load_model", lambda args: Brightness())
    source = write(tmp_path / "in.mp4", moving(4))
    arguments = [
        str(source),
        "-o",
        str(tmp_path / "out.mp4"),
        "--words",
        "dark, light",
        "--smooth=3",
    ]
    assert main(["video", *arguments]) == 0
    told = capsys.readouterr().out
    assert "dark 9" in told and "4 frames in" in told and "out_labels.mkv" in told
    assert main(["video", *arguments, "--smooth=4"]) == 1
    assert "4 frames cannot vote" in capsys.readouterr().err


def test_what_is_missing_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "in.mp4", moving(1))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(CATSegError, match=r"pip install 'cat-seg\[video\]'"):
        list(video.frames(source))
