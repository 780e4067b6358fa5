"""Every export carries the license of its code, and names that of its weights (graphs: see test_graphs.py)."""

from pathlib import Path

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")


def test_folders_have_the_license_of_their_code(exported_encoder, exported_vlm):
    for folder in (exported_encoder, exported_vlm):
        assert (folder / "LICENSE").read_text(encoding="utf-8") == TEXT
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "`LICENSE` (Apache-2.0) is that of the Python files. It does not cover the weights" in card
        assert "The teacher's license (cc-by-nc-4.0) applies here too" in card
        assert "Its terms: no commercial use; whether a distilled student is derived" in card
    assert "The Video LLM's license (mit) applies here too" in (exported_vlm / "README.md").read_text(encoding="utf-8")
