"""Averages by domain, as MESS takes them."""

import pytest

from cat_seg.plugin.data.datasets.registered import MESS, MESS_PUBLISHED
from cat_seg.plugin.evaluation.domains import domain_averages, domain_table


def test_four_parts_of_paxray_count_as_one():
    miou = {name: 10.0 for name in MESS}
    for i, part in enumerate(("lungs", "bones", "mediastinum", "diaphragm")):
        miou[f"paxray_sem_seg_test_{part}"] = 50.0 + 2 * i  # 53 together
    averages, mean = domain_averages(miou | {"ade20k_150_test_sem_seg": 99.0})
    assert averages == pytest.approx([10, 10, (30 + 53) / 4, 10, 10])
    assert mean == pytest.approx((21 * 10 + 53) / 22)


def test_the_table_stands_beside_the_published_figures():
    table = domain_table({"dram_sem_seg_test": 12.0}, "CAT-Seg")
    assert "CAT-Seg (24 data sets are missing)" in table
    assert all(f"{figures[-1]:.2f}" in table for figures in MESS_PUBLISHED.values())
    assert domain_table({"ade20k_150_test_sem_seg": 1.0}) == ""
