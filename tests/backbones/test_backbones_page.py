"""The page of backbones says what the tests run over."""

from backbones_page import PAGE, filled


def test_its_tables_are_the_lists_of_the_tests():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, f"run python {filled.__module__}.py in tests/backbones and commit {PAGE.name}"
