"""Any backbone of timm as image guidance, by its name: DINOv2, ConvNeXt, Swin, SAM's encoder.

B images, C channels, h x w pixels.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.sliding_window import resize
from cat_seg.registry import register

DEEPEST = 16  # pixels to a position of the deepest map, as in the published models


@register("guidance", "timm")
class TimmBackbone(nn.Module):
    """Maps `res4`, `res3` and `res2`, of once, twice and four times the cost volume's resolution.

    Of a backbone whose maps shrink, those of strides 16, 8 and 4; of a ViT, whose maps all have one
    size, the last and those at two and one thirds of its layers, upsampled.

    Attributes:
        out_features: names of the maps, shallowest first.
        channels, strides: of each map.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        model: str,
        layers: tuple[int, ...] = (),
        weights: str = "",
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Build the backbone with random weights.

        Args:
            config: of the model that it guides.
            model: a name of timm, with the tag of its weights if there are several:
                "vit_small_patch14_dinov2.lvd142m".
            layers: three of that model's `feature_info`, counted from 0, shallowest first; ()
                chooses as the class says.
            weights: a file of its weights, of timm's names; "" for the published ones, "none" to
                begin at random.
            settings: further arguments of its constructor.

        Raises:
            CATSegError: if timm knows no such model, or it has no three maps.
        """
        super().__init__()
        self.model, self.weights, self.settings = model, weights, settings or {}
        self.image_size = [DEEPEST * side for side in config.grid]
        self.net = self._create()
        infos = getattr(self.net, "feature_info", [])
        reductions = [info["reduction"] for info in infos]
        self.layers = tuple(layers) or _choose(reductions)
        if len(self.layers) != 3 or not all(0 <= i < len(infos) for i in self.layers):
            raise CATSegError(
                f"Layers {list(self.layers)} of timm's {model!r} cannot guide; expected three "
                f"numbers from 0 to {len(infos) - 1}, shallowest first."
            )
        self.net.prune_intermediate_layers(list(self.layers), prune_norm=True, prune_head=True)
        self.out_features = ["res2", "res3", "res4"]
        widths = [infos[i]["num_chs"] for i in self.layers]
        stride = reductions[self.layers[-1]]
        self.channels = dict(zip(self.out_features, widths, strict=True))
        self.strides = {"res2": stride // 4, "res3": stride // 2, "res4": stride}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, h, w), normalised -> of each name (B, C, .., ..), each half as large as before."""
        maps = self.net.forward_intermediates(
            image, indices=list(self.layers), output_fmt="NCHW", intermediates_only=True
        )
        height, width = maps[-1].shape[-2:]
        sizes = [(height * scale, width * scale) for scale in (4, 2, 1)]
        return {
            name: resize(one, size)
            for name, one, size in zip(self.out_features, maps, sizes, strict=True)
        }

    def load_initial_weights(self) -> None:
        """Load the weights that it was trained with, as a training begins."""
        if self.weights == "none":
            return
        overlay = {"file": self.weights} if self.weights else None
        found = self._create(pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
        self.net.load_state_dict({key: found[key] for key in self.net.state_dict()})

    def _create(self, **options: Any) -> Any:
        # Position embeddings keep their native size, as weights have it, and follow the image's
        # where the model allows that.
        for sizes in ({"dynamic_img_size": True}, {"img_size": self.image_size}, {}):
            arguments = {"num_classes": 0, **sizes, **self.settings, **options}
            try:
                net = timm.create_model(self.model, **arguments)
            except TypeError:  # it does not have the argument
                if not sizes:
                    raise
            except RuntimeError as error:
                raise CATSegError(f"timm cannot make {self.model!r}: {error}.") from error
            else:
                break
        if not hasattr(net, "prune_intermediate_layers"):
            raise CATSegError(f"timm's {self.model!r} does not give its intermediate maps.")
        return net


def _choose(reductions: list[int]) -> tuple[int, ...]:
    """Three layers, shallowest first, by the stride of each."""
    if len(set(reductions)) == 1:
        count = len(reductions)
        return count // 3 - 1, 2 * count // 3 - 1, count - 1
    last = {stride: i for i, stride in enumerate(reductions)}
    return tuple([last[stride] for stride in sorted(last) if stride <= DEEPEST][-3:])
