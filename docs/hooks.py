"""Brings benchmarks/ into the site, and points links at it: pages and tables lie beside docs/ in the repository."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of benchmarks/ and what they link to."""
    for path in sorted(BENCHMARKS.glob("*")):
        if path.suffix in (".md", ".png", ".json", ".py"):
            uri = f"benchmarks/{path.name}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In docs/, benchmarks/ is a folder beside; on the site, below."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")
