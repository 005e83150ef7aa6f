"""Convert CAT-Seg checkpoints between the released layout and ours, .pth and .safetensors.

cat-seg convert model_final_large.pth large.safetensors --half
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cat_seg.conversion import from_released, generation, to_released
from cat_seg.errors import CATSegError
from cat_seg.trust.weights import read_weights, write_weights
from cat_seg.utils.files import fetch


def convert(source: str, target: str | Path, *, to: str = "cat_seg", half: bool = False) -> None:
    """Write the weights of one checkpoint as another file.

    Args:
        source: A path, URL or hf://owner/repo/file.
        target: A path that ends in .pth ({"model": ...}) or .safetensors.
        to: "released" (with the constants that the original code stores) or "cat_seg" (without).
        half: Whether to store floating point weights in half precision.

    Raises:
        CATSegError: The source is no checkpoint of CAT-Seg, or the target has another suffix.
    """
    target = Path(target)
    if target.suffix not in (".pth", ".safetensors"):
        raise CATSegError(f"{target}: expected a name that ends in .pth or .safetensors")
    state = from_released(read_weights(fetch(source)))
    if generation(state) is None:
        raise CATSegError(f"{source}: not a checkpoint of CAT-Seg")
    if to == "released":
        state = to_released(state)
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    state = {key: value.contiguous().clone() for key, value in state.items()}  # no shared storage
    write_weights(state if target.suffix == ".safetensors" else {"model": state}, target)


def main(arguments: Sequence[str]) -> int:
    """Convert the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(
        prog="cat-seg convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="path, URL or hf://owner/repo/file")
    parser.add_argument("target", metavar="OUT", help=".pth or .safetensors")
    parser.add_argument("--to", choices=("released", "cat_seg"), default="cat_seg")
    parser.add_argument("--half", action="store_true", help="store in half precision")
    args = parser.parse_args(arguments)
    convert(args.source, args.target, to=args.to, half=args.half)
    return 0
