"""What differs between two runs, as it is told."""

import pytest

from cat_seg.plugin.run_folder import RunFolder


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (["cat", "couch"], ["cat", "sofa, couch"], "- 'couch', + 'sofa, couch'"),
        (["cat", "sofa"], ["sofa", "cat"], "the same in another order"),
        ([], [f"word {i}" for i in range(50)], "+ 30 more"),
        (1, 2, "1 -> 2"),
        ("a" * 64, ["cat"], 'aaaaaaaaaaaa... -> ["cat"]'),
    ],
)
def test_a_difference_is_told_by_words(tmp_path, before, after, told):
    folder = RunFolder(tmp_path, "evaluation")
    folder.begin({"words of own": before}, keep=False)
    (difference,) = RunFolder(tmp_path, "evaluation").differences({"words of own": after})
    assert difference.startswith("words of own: ") and difference.endswith(told)
