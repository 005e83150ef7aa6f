"""Write the files of the page: the model, its text encoder, CLIP's merges and a scene.

    python demo/web/export.py web && cd web
    npm install onnxruntime-web
    python -m http.server --bind 127.0.0.1      # http://127.0.0.1:8000

Needs `pip install "cat-seg[export]"`. N texts, L tokens, C channels, D embedding width.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError
from cat_seg.drawing import save_picture
from cat_seg.export import export
from cat_seg.modeling.clip import blocks
from cat_seg.modeling.clip.text import shares_beginnings
from cat_seg.synthetic.dataset import split_scene
from cat_seg.utils.files import atomic_write

HERE = Path(__file__).parent


class TextEncoder(nn.Module):
    """CLIP's text encoder with the used rows of its token table alone."""

    row: Tensor

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip: Any = clip
        weight = clip.token_embedding.weight.detach()
        used = weight.any(dim=1).nonzero().flatten()
        row = torch.full((len(weight),), len(used), dtype=torch.int32)  # the last one, of zeros
        row[used] = torch.arange(len(used), dtype=torch.int32)
        self.register_buffer("row", row)
        self.table = nn.Parameter(F.pad(weight[used], (0, 0, 0, 1)), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens (N, L), int32 and filled up with zeros, to (N, D) of unit length."""
        clip, L = self.clip, tokens.shape[1]
        x = self.table[self.row[tokens.long()].long()] + clip.positional_embedding[:L]  # (N, L, C)
        for block in clip.transformer.resblocks:
            q, k, v = blocks.query_key_value(block.attn, block.ln_1(x))
            attended = blocks.attend(q, k, v, block.attn.num_heads, causal=True)
            x = blocks.add_attention_and_mlp(block, x, attended)
        ends = (tokens == tokens.amax(dim=1, keepdim=True)).to(x.dtype)  # (N, L), the highest
        x = clip.ln_final(torch.einsum("nl,nlc->nc", ends, x))
        return F.normalize(x @ clip.text_projection, dim=-1)


def write_text_encoder(model: CATSeg, path: Path) -> None:
    """Write the text encoder as ONNX; N and L are free.

    Raises:
        CATSegError: if the model's texts are not encoded as CLIP's are.
    """
    clip = model.predictor.clip_model
    if not shares_beginnings(clip) or model.predictor.text is not None:
        raise CATSegError("This page encodes texts as CLIP does, but this model does not.")
    tokens = torch.randint(1, 400, (3, 9), dtype=torch.int32)
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            TextEncoder(clip).eval(), (tokens,), dynamic_shapes=({0: free, 1: free},)
        )
    written = torch.onnx.export(
        program, dynamo=True, input_names=["tokens"], output_names=["features"], verbose=False
    )
    assert written is not None
    with atomic_write(path) as part:
        written.save(str(part))


def main(arguments: list[str] | None = None) -> None:
    """Write the page into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="synthetic")
    args = parser.parse_args(arguments)
    folder = args.folder
    model = CATSeg.from_pretrained(args.model, "cpu")
    if model.plan.sliding_window is not None:
        raise CATSegError("This page shows the picture to the model once, without tiles.")
    words = model.vocabulary(list(model.default_words) or ["thing"])
    export(model, folder, words, formats=["onnx"])
    write_text_encoder(model, folder / "text.onnx")
    about = json.loads((folder / "model.json").read_text("utf-8"))
    about |= {
        "words": words.strings,
        "threshold": model.threshold,
        "templates": model.predictor.templates,
        "synonyms": model.config.synonyms,
        "context": model.predictor.clip_model.context_length,
    }
    with atomic_write(folder / "web.json") as part:
        part.write_text(json.dumps(about), "utf-8")
    merges = files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    with atomic_write(folder / "merges.txt.gz") as part:
        part.write_bytes(gzip.compress(gzip.decompress(merges.read_bytes()), mtime=0))
    scene = split_scene("val", 11, seed=1, size=256)
    save_picture(folder / "scene.png", Image.fromarray(scene.image))
    for name in ("index.html", "cat_seg.js"):
        with atomic_write(folder / name) as part:
            shutil.copyfile(HERE / name, part)
    for name in ("model.json", "words.npz", "segment.py"):  # of Python
        (folder / name).unlink()


if __name__ == "__main__":
    main()
