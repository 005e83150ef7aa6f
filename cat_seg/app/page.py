"""The page: a picture, words, and what is where; for one visitor or many.

What a visitor sees lives in their session: nothing but the models is shared, and those keep no
words. Changing words, threshold or opacity uses the picture as it is encoded, and
encodes new words alone.
"""

from __future__ import annotations

import html
import json
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cat_seg import hub, images
from cat_seg.app import view
from cat_seg.drawing import OPACITY, save_picture
from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.model import CATSeg, EncodedPicture
from cat_seg.segmentation import Segmentation
from cat_seg.synthetic.dataset import split_scene
from cat_seg.utils.files import atomic_write
from cat_seg.vocabulary import Vocabulary

MAX_WORDS = 1000
MAX_PIXELS = 50_000_000
MAX_UPLOAD = "50mb"
FORGOTTEN = 3600  # seconds after which what a visitor left is removed
MODELS_IN_MEMORY = 2
OWN = "the model's own words"
PRESETS = {
    OWN: "",
    "PASCAL VOC, 20 things": "voc20",
    "PASCAL-Context, 59": "pc59",
    "ADE20K, 150": "ade150",
    "COCO-Stuff, 171": "coco",
}
# Scenes of the small model's world, by their number; drawn when the page is built.
_EXAMPLES = ((3, 192), (11, 256), (25, 160))
_HERE = Path(__file__).parent


class Models:
    """The models that were asked for last, by name; one is loaded at a time."""

    def __init__(self, device: str = "") -> None:
        self._device = device
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, CATSeg] = OrderedDict()

    def get(self, name: str) -> CATSeg:
        """Load a model unless it is there.

        Raises:
            CATSegError: if it cannot be had.
        """
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = CATSeg.from_pretrained(name, self._device)
            self._loaded.move_to_end(name)
            while len(self._loaded) > MODELS_IN_MEMORY:
                self._loaded.popitem(last=False)
            return self._loaded[name]


@dataclass
class Session:
    """What one visitor looks at.

    Attributes:
        source: file and model that `encoded` is of.
        encoded: the picture; None before there is one.
        result: the last segmentation.
        words: features of the words of the last list.
        words_of: the model that they are of.
        folder: of the files that they asked for.
    """

    source: tuple[str, str] = ("", "")
    encoded: EncodedPicture | None = None
    result: Segmentation | None = None
    words: dict[str, Tensor] = field(default_factory=dict)
    words_of: str = ""
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="cat-seg-")
    )

    def segment(
        self,
        model: CATSeg,
        source: tuple[str, str],
        words: list[str],
        background: str,
        threshold: float | None,
    ) -> Segmentation:
        """Segment a picture; it is encoded only if it, or the model, is another than before.

        Args:
            model: the one that `source` names.
            source: path of the picture, and name of the model.
            words: classes; synonyms of one are separated by "|" or ", ".
            background: words that compete, separated by commas.
            threshold: None for the model's.

        Raises:
            CATSegError: if picture or words cannot be understood, or are too large or too many.
        """
        if len(words) > MAX_WORDS:
            raise CATSegError(f"{len(words)} words; this page takes {MAX_WORDS} at most.")
        behind = Vocabulary.from_text(background).strings if background.strip() else ()
        vocabulary = self._encode_words(
            model, source[1], Vocabulary.parse(words, background=behind)
        )
        if self.encoded is None or self.source != source:
            pixels = images.read(source[0], max_pixels=MAX_PIXELS)
            self.encoded, self.source = model.encode(pixels), source
        self.result = model.predict(self.encoded, vocabulary, threshold=threshold)
        return self.result

    def _encode_words(self, model: CATSeg, name: str, parsed: Vocabulary) -> Vocabulary:
        """Encode the words that the last list did not have."""
        strings = [*parsed.strings, *parsed.background]
        kept = self.words if self.words_of == name else {}
        fresh = [one for one in strings if one not in kept]
        if len(fresh) < len(strings):
            if fresh:
                kept = kept | dict(zip(fresh, model.predictor.text_features(fresh), strict=True))
            parsed = replace(parsed, features=torch.stack([kept[one] for one in strings]))
        vocabulary = model.vocabulary(parsed)
        assert vocabulary.features is not None
        self.words = dict(zip(strings, vocabulary.features, strict=True))
        self.words_of = name
        return vocabulary

    def files(self) -> list[str]:
        """Write overlay, label map, JSON and COCO's format of the last result, at full size."""
        if self.result is None:
            return []
        folder = Path(self.folder.name)
        overlay, *rest = self.result.save(folder, "cat_seg")
        save_picture(overlay.with_suffix(".png"), self.result.plot())
        coco = folder / "cat_seg_coco.json"
        with atomic_write(coco) as part:
            part.write_text(json.dumps(self.result.to_coco()), encoding="utf-8")
        overlay.unlink()
        return [str(path) for path in (overlay.with_suffix(".png"), *rest, coco)]

    def close(self) -> None:
        """Remove their files."""
        self.folder.cleanup()


def build(model: str = "synthetic", device: str = "") -> Any:
    """Build the page.

    Args:
        model: what is loaded first: anything that `CATSeg.from_pretrained` takes.
        device: of the models; the best there is if empty.

    Returns:
        a `gradio.Blocks`; `launch` serves it with style and limits.

    Raises:
        CATSegError: if the model cannot be had.
        MissingPackageError: gradio is not installed.
    """
    gr = _gradio()
    models = Models(device)
    first = models.get(model)
    choices = [(_label(one), one.name) for one in hub.list_models()]
    if model not in [name for _, name in choices]:
        choices.insert(0, (first.card["name"] or model, model))

    progress = gr.Progress(track_tqdm=True)  # of downloads

    def show(
        session: Session | None, path: str | None, name: str, words: list[str], background: str,
        automatic: bool, threshold: float, opacity: float, progress: Any = progress,
    ) -> dict[Any, Any]:  # fmt: skip
        session = session or Session()
        if not path or not words:
            text = "Choose a picture." if not path else "Name at least one word."
            return {
                state: session,
                picture: f"<p>{text}</p>",
                notes: "",
                table: [],
                word: _none(gr),
            }
        try:
            used = models.get(name)
            limit = None if automatic else threshold
            result = session.segment(used, (path, name), words, background, limit)
        except CATSegError as error:
            raise gr.Error(html.escape(str(error)), duration=20, title="Not understood") from error
        return {
            state: session,
            picture: view.figure(result, opacity),
            notes: "  \n".join(_plain(note) for note in result.notes),
            table: view.areas(result),
            word: gr.Dropdown(choices=list(result.classes), value=None, interactive=True),
            heat: None,
            files: [],
            slider: gr.Slider(value=result.threshold) if automatic else gr.Slider(),
        }

    def redraw(session: Session | None, opacity: float) -> str:
        if session is None or session.result is None:
            return "<p>Choose a picture.</p>"
        return view.figure(session.result, opacity)

    def show_heat(session: Session | None, name: str | None) -> Any:
        if session is None or session.result is None or not name:
            return gr.Image(value=None, label="Heat map")
        try:
            map_, peak = view.heat_map(session.result, name)
        except CATSegError as error:
            raise gr.Error(html.escape(str(error))) from error
        label = f"{name}: up to {100 * peak:.0f} %"
        return gr.Image(value=map_, label=label, alt_text=f"How probable {label} is, by brightness")

    def switch(name: str, progress: Any = progress) -> tuple[str, Any]:
        try:
            used = models.get(name)
        except CATSegError as error:
            raise gr.Error(html.escape(str(error)), duration=20, title="No model") from error
        return _banner(used), gr.Dropdown(choices=list(used.default_words))

    def preset(chosen: str, name: str) -> list[str]:
        if PRESETS[chosen]:
            return Vocabulary.read(PRESETS[chosen]).strings
        return list(models.get(name).default_words)

    examples = tempfile.TemporaryDirectory(prefix="cat-seg-examples-")
    with gr.Blocks(
        title="CAT-Seg", analytics_enabled=False, delete_cache=(FORGOTTEN, FORGOTTEN)
    ) as page:
        state = gr.State(None, time_to_live=FORGOTTEN, delete_callback=_close)
        gr.Markdown("# CAT-Seg\nSegment a picture by any list of words.")
        banner = gr.Markdown(_banner(first), elem_id="banner")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.Image(
                    label="Picture: upload, paste, or take one",
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard", "webcam"],
                    height=300,
                    elem_id="upload",
                )
                gr.Examples(
                    _examples(Path(examples.name)),
                    inputs=upload,
                    label="Examples of the small model's world",
                )
                words = gr.Dropdown(
                    choices=list(first.default_words),
                    value=list(first.default_words) or None,
                    multiselect=True,
                    allow_custom_value=True,
                    label="Words",
                    info='Type one and press Enter; synonyms of a class with "|": sofa|couch.',
                    elem_id="words",
                )
                presets = gr.Dropdown(list(PRESETS), value=OWN, label="Take a list of words")
                behind = gr.Textbox(
                    label="Background",
                    info="Words that compete and are reported as background, with commas.",
                )
                own = gr.Checkbox(True, label="The model's threshold")
                slider = gr.Slider(
                    *(0, 1),
                    step=0.01,
                    value=0,
                    label="None of these below",
                    info="Pixels whose best word is less probable get none.",
                )
                opacity = gr.Slider(0, 1, step=0.05, value=OPACITY, label="Opacity of the colours")
                chooser = gr.Dropdown(choices, value=model, label="Model")
            with gr.Column(scale=3, min_width=320):
                picture = gr.HTML("<p>Choose a picture.</p>", elem_id="picture")
                notes = gr.Markdown(elem_id="notes")
                table = gr.Dataframe(
                    headers=["word", "% of the picture"],
                    datatype=["str", "number"],
                    label="Areas",
                    interactive=False,
                    elem_id="areas",
                )
                with gr.Row():
                    with gr.Column():
                        word = gr.Dropdown([], label="Heat map of", elem_id="word")
                        heat = gr.Image(label="Heat map", interactive=False, elem_id="heat")
                    with gr.Column():
                        prepare = gr.Button("Prepare files", elem_id="prepare")
                        files = gr.Files(label="PNG, label map, JSON, COCO", interactive=False)

        given = [state, upload, chooser, words, behind, own, slider, opacity]
        shown = [state, picture, notes, table, word, heat, files, slider]
        together: dict[str, Any] = {
            "concurrency_id": "model", "concurrency_limit": 2, "show_progress_on": picture,
        }  # fmt: skip
        for event in (upload.change, words.change, behind.submit, own.change, slider.release):
            event(show, given, shown, trigger_mode="always_last", **together)
        chooser.change(switch, chooser, [banner, words], **together).success(
            show, given, shown, **together
        )
        presets.input(preset, [presets, chooser], words, **together)
        opacity.release(redraw, [state, opacity], picture)
        word.input(show_heat, [state, word], heat, **together)
        prepare.click(lambda session: session.files() if session else [], state, files)
    page.examples = examples  # removed with the page
    return page.queue(max_size=64)


def launch(page: Any, *, host: str = "127.0.0.1", port: int | None = None, **more: Any) -> Any:
    """Serve the page with its style and limits.

    Args:
        page: of `build`.
        host: where to listen; 127.0.0.1 is this machine alone.
        port: the first that is free from 7860 on if None.
        more: for `gradio.Blocks.launch`.
    """
    gr = _gradio()
    fonts = ["system-ui", "sans-serif"]  # the visitor's own, none from elsewhere
    return page.launch(
        server_name=host,
        server_port=port,
        theme=gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        show_error=True,
        **more,
    )


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError.of_extra("The page", "gradio", "web") from error
    return gradio


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()


def _none(gr: Any) -> Any:
    return gr.Dropdown(choices=[], value=None)


def _plain(text: str) -> str:
    """Keep text from being read as HTML or Markdown."""
    return html.escape(text).replace("*", r"\*").replace("_", r"\_").replace("`", r"\`")


def _label(model: hub.PublishedModel) -> str:
    size = f", {model.download_bytes / 1e6:.0f} MB" if model.download_bytes else ""
    kind = "photographs" if model.photographs else "its synthetic world; ships"
    return f"{model.name} ({kind}{', downloaded at first' if model.address else ''}{size})"


def _banner(model: CATSeg) -> str:
    name = _plain(str(model.card["name"] or "This model"))
    if model.card["photographs"]:
        return f"**{name}** knows photographs, and takes any words."
    return (
        f"**{name}** is small and knows nothing but its synthetic world, as in the examples: "
        "backgrounds such as sand, and objects such as a red striped star. For photographs, choose "
        "another model below; it is downloaded when it is first used."
    )


def _examples(folder: Path) -> list[str]:
    """Draw scenes of the small model's world."""
    paths = []
    for index, size in _EXAMPLES:
        scene = split_scene("val", index, seed=1, size=size)
        paths.append(str(save_picture(folder / f"scene_{index}.png", Image.fromarray(scene.image))))
    return paths
