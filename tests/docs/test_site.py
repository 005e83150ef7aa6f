"""Links of the README and the docs lead somewhere, in the repository and on the site."""

from pathlib import Path

import pytest

from docs.tools.site import DOCS, ROOT, rewrite_links

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    rewrite_links(page.read_text(encoding="utf-8"), page, "https://example.org")


@pytest.mark.parametrize(
    "source, text, expected",
    [
        ("README.md", "[a](docs/weights.md#how-they-load)", "[a](weights.md#how-they-load)"),
        ("README.md", '<img src="docs/synthetic.jpg">', '<img src="synthetic.jpg">'),
        ("README.md", "[a](LICENSE)", "[a](https://example.org/blob/main/LICENSE)"),
        ("docs/a.md", "[a](weights.md)", "[a](weights.md)"),
        ("docs/a.md", "[a](../configs)", "[a](https://example.org/tree/main/configs)"),
        ("docs/a.md", "[a](https://a.b) [b](#c)", "[a](https://a.b) [b](#c)"),
    ],
)
def test_links_are_led_to_where_they_are_on_the_site(source: str, text: str, expected: str):
    assert rewrite_links(text, ROOT / source, "https://example.org/") == expected


@pytest.mark.parametrize("target", ["docs/none.md", "../elsewhere"])
def test_a_link_to_nothing_is_told(target: str):
    with pytest.raises(ValueError, match=rf"README\.md links to {target}"):
        rewrite_links(f"[a]({target})", ROOT / "README.md", "https://example.org")
