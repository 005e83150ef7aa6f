import logging

import numpy as np
import pytest

from cat_seg import fonts


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without fonts of its own."""
    cached = (fonts._system_fonts, fonts._font_of, fonts.can_draw, fonts._tell, fonts._draw)

    def forget():
        for function in cached:
            function.cache_clear()

    monkeypatch.setattr(fonts, "_FOLDERS", ())
    forget()
    yield
    forget()


def test_text_is_drawn_in_its_colour():
    text = np.asarray(fonts.draw_text("sofa", 20, (10, 20, 30)))
    assert text.shape == (27, fonts.text_width("sofa", 20), 4)
    assert text[..., 3].max() > 200 and text[0, :, 3].max() == 0
    np.testing.assert_array_equal(
        text[..., :3].reshape(-1, 3), [(10, 20, 30)] * (text[..., 3].size)
    )


def test_latin_needs_no_font(no_fonts):
    assert fonts.can_draw("sofa, bus-stop 2")


def test_missing_font_is_told_once(no_fonts, caplog):
    with caplog.at_level(logging.WARNING):
        assert not fonts.can_draw("猫") and not fonts.can_draw("犬")
        assert not fonts.can_draw("बिल्ली")
    assert [m for m in caplog.messages if "fonts-noto-cjk" in m] == caplog.messages[:1]
    assert "devanagari" in caplog.messages[1] and len(caplog.messages) == 2


@pytest.mark.parametrize("text", ["кошка", "猫", "قطة", "बिल्ली", "cat 🐱 dog", "cat 猫"])
def test_every_script(text):
    if not fonts.can_draw(text):
        pytest.skip("no font on this machine has it")
    runs = fonts._runs(text)
    assert sorted("".join(run for run, _ in runs)) == sorted(text)
    assert all(fonts._has(path, c) for run, path in runs for c in run if fonts._needs_font(c))
    assert np.asarray(fonts.draw_text(text, 20, (0, 0, 0)))[..., 3].any()


def test_right_to_left_runs(monkeypatch):
    monkeypatch.setattr(fonts, "_has", lambda path, c: (path == "arabic") == ("\u0600" < c))
    monkeypatch.setattr(fonts, "_font_of", lambda c: "arabic" if "\u0600" < c else "")
    assert fonts._runs("قطة cat") == [("cat", ""), ("قطة ", "arabic")]
