"""A user's first program; .ci/package runs it on a picture, and checks its types."""

import sys

import cat_seg
from cat_seg import CATSeg

picture = sys.argv[1]
print(cat_seg.list_models())
model = CATSeg.from_pretrained("synthetic")
result = model.predict(picture, ["water", ["sky", "clouds"], "red striped star"])
height, width = result.labels.shape
assert result.scores.shape == result.mask("water").shape == (height, width)
assert result.classes == ("water", "sky", "red striped star")
areas: dict[str, float] = result.areas()
assert areas["water"] > 0.1, areas
assert result.probabilities("sky").max() <= 1
assert {region.name for region in result.regions(min_area=100)} <= {*result.classes}
result.plot().save("plot.png")
for file in result.save("saved"):
    assert file.stat().st_size
words = model.vocabulary(["water", "sky"])
for streamed in model.stream([picture, picture], words):
    assert streamed.labels.shape == (height, width)
assert "detectron2" not in sys.modules
