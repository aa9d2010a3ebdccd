"""Fill the tables of the README from the committed result files.

``python benchmarks/report.py`` rewrites every block between ``<!-- results: name -->`` and
``<!-- end -->``; ``--check`` only says whether one is stale. No figure in the README is typed by hand.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import harness

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def speed(question: str) -> str:
    """One row a case: the baseline's time, ours, the ratio with its range over processes."""
    path, report = harness.newest(question)
    env = report["environment"]
    names = list(report["cases"][0]["variants"])
    rows = [
        f"| {question}, ms | " + " | ".join(names) + " | speed-up |",
        "|---" * (len(names) + 2) + "|",
    ]
    for case in report["cases"]:
        variants = case["variants"]
        label = ", ".join(f"{k}={v}" for k, v in case["case"].items())
        ours = variants[names[-1]]
        low, high = ours["speedup_range"]
        times = " | ".join(f"{variants[n]['median_us'] / 1e3:.3g}" if n in variants else "-" for n in names)
        rows.append(f"| {label} | {times} | {ours['speedup']:.1f} ({low:.1f}-{high:.1f}) |")
    threads = f"{env['threads']} thread" + ("s" if env["threads"] > 1 else "")
    note = (
        f"{env['cpu']}, {env['isa']}, {threads}, torch {env['torch']}; "
        f"medians over {env['processes']} processes, "
        f"in brackets the range ([data](benchmarks/results/{path.name}))."
    )
    return "\n".join([*rows, "", note, ""])


BLOCKS: dict[str, Callable[[], str]] = {
    "lstm": lambda: speed("lstm"),
    "decode": lambda: speed("decode"),
}


def render(text: str) -> str:
    """The text with every block made anew."""
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m["name"]]() + m[4], text)


def main() -> int:
    """Rewrite the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = render(old)
    if check:
        if new != old:
            print("README.md is stale: run python benchmarks/report.py", file=sys.stderr)
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
