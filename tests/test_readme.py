"""The README: its tables come from the result files, and its example prints what it says."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_result_files():
    script = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_example_prints_what_it_says():
    pytest.importorskip("skimage")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    promised = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# ")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert promised
    assert printed.getvalue().splitlines() == promised


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_recipes_of_the_papers_tables_exist():
    training = pytest.importorskip("lrcn_fast.training")
    named = re.findall(r"`((?:coco|flickr30k|ucf101)_\w+)`", (ROOT / "docs" / "paper.md").read_text())
    assert named
    assert not set(named) - set(training.recipe_names())
