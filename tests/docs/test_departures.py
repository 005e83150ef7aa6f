"""Every departure from the published code names the test that holds it, and that test is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_departure_names_a_test_that_is_there():
    page = (ROOT / "docs/departures.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 5
    for row in rows:
        file, test = re.fullmatch(r"\| .* \| `(tests/\S+\.py)::(test_\w+)` \|", row).groups()
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), row
