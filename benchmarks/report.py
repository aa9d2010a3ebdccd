"""Fill the tables of the README and of the docs from the committed result files.

``python benchmarks/report.py`` rewrites every block between ``<!-- results: name -->`` and
``<!-- end -->``; ``--check`` only says whether one is stale. No figure of ours there is typed by hand.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import describe
import describe_videos
import flickr8k
import harness
import retrieval
import roofline
import speed
import units
import ut_interaction

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("paper", "speed", "describe")))
BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def limits() -> str:
    """Each kernel beside what the machine allows, for each CPU."""
    parts = []
    for cpu in harness.cpus("roofline"):
        path, report = harness.newest("roofline", cpu=cpu, threads=1, forced_isa=None)
        env = report["environment"]
        note = (
            f"Medians over {env['processes']} fresh processes, range of the share; {env['cpu']}, "
            f"{env['isa']}, {env['threads']} thread{'s' if env['threads'] > 1 else ''} "
            f"([data](../benchmarks/results/{path.name}))."
        )
        parts.append(f"{roofline.markdown(report)}\n\n{note}\n")
    return "\n".join(parts)


def rounding() -> str:
    """What rounded weights do to captions."""
    path, report = harness.newest("accuracy")
    spare = report["spare_candidates"]
    note = (
        f"`{report['model']}`, {report['photos']} dev photos of Flickr8k small; lower table: the unrounded "
        f"model at {spare['rows']} words of its captions; int8 moves its logits by "
        f"{spare['logit_error_mean']:.2g} in the mean; {report['environment']['isa']} "
        f"([data](../benchmarks/results/{path.name}))."
    )
    return f"{accuracy.markdown(report)}\n\n{accuracy.spare_markdown(report)}\n\n{note}\n"


def encoders() -> str:
    """Encoders on 32 images at once, and as ours take them."""
    path, report = harness.newest("encode", threads=1, forced_isa=None)
    env = report["environment"]
    rows = ["| 32 images | at once, ms | lrcn_fast, ms | |", "|---|---|---|---|"]
    for case in report["cases"]:
        whole, ours = case["variants"]["whole batch"], case["variants"]["lrcn_fast"]
        low, high = ours["speedup_range"]
        times = f"{whole['median_us'] / 1e3:.0f} | {ours['median_us'] / 1e3:.0f}"
        rows.append(
            f"| {case['case']['encoder']} | {times} | {ours['speedup']:.2f}x ({low:.2f}-{high:.2f}) |"
        )
    note = (
        f"Medians over {env['processes']} fresh processes; {env['cpu']}, {env['threads']} thread, torch "
        f"{env['torch']} ([data](../benchmarks/results/{path.name}))."
    )
    return "\n".join([*rows, "", note, ""])


def captions() -> str:
    """The scores of each model with greedy search and beams, and of the nearest neighbour."""
    path, report = harness.newest("flickr8k")
    table = flickr8k.markdown(report, ("bleu_4", "rouge_l", "cider_d"), ("own", "greedy", "beam 5", "cosine"))
    note = (
        f"{report['data']} ([data](benchmarks/results/{path.name}); "
        "[every way to decode](benchmarks/results/flickr8k.md))."
    )
    return f"{table}\n{note}\n"


def ablation() -> str:
    """The paper's comparison of models and ways to decode, on our data; and how novel the sentences are."""
    path, report = harness.newest("flickr8k")
    runs = [
        (f"LRCN_{name.partition('_')[0]}", cnn, run["decoding"])
        for name, run in report["runs"].items()
        if (cnn := name.partition("_")[2]) in ("frozen", "finetuned")
    ]
    ways = [way for way in runs[0][2] if not way.startswith("own")]
    parts = []
    for what, metric in (("CIDEr-D", "cider_d"), ("BLEU-4", "bleu_4")):
        parts += [f"| {what} | CNN | " + " | ".join(ways) + " |", "|---" * (len(ways) + 2) + "|"]
        parts += [
            f"| {model} | {cnn} | " + " | ".join(f"{decoding[way][metric]:.3f}" for way in ways) + " |"
            for model, cnn, decoding in runs
        ]
        parts.append("")
    shown = ("greedy", "beam 5", "sample N=1 T=2", "sample N=100 T=1.5")
    parts += ["| share of the vocabulary used / of sentences that are not in the training captions | CNN | "]
    parts[-1] += " | ".join(shown) + " |"
    parts.append("|---" * (len(shown) + 2) + "|")
    for model, cnn, decoding in runs:
        cells = [f"{decoding[w]['vocabulary_share']:.1%} / {decoding[w]['novel']:.1%}" for w in shown]
        parts.append(f"| {model} | {cnn} | " + " | ".join(cells) + " |")
    parts += ["", f"{report['data']} ([data](../benchmarks/results/{path.name})).", ""]
    return "\n".join(parts)


def unit_captions() -> str:
    """Captions of the plain recurrent layers beside those of the LSTM."""
    path, report = harness.newest("units")
    return f"{units.captions_markdown(report)}\n\n{_unit_note(path, report)}\n"


def unit_retrieval() -> str:
    """Retrieval with the plain recurrent layers beside that with the LSTM."""
    path, report = harness.newest("units")
    return f"{units.retrieval_markdown(report)}\n\n{_unit_note(path, report)}\n"


def _unit_note(path: Path, report: dict[str, Any]) -> str:
    size = report["changes"]["model.hidden_size"]
    return (
        f"LRCN_2f, E = H = {size}, CNN frozen; 113 dev photos of Flickr8k small; mean (range) over the seeds "
        f"([data](../benchmarks/results/{path.name}))."
    )


def retrieved() -> str:
    """Retrieval with the packaged model, and what scoring 1000 x 5000 pairs takes."""
    path, report = harness.newest("retrieval")
    s, q = report["speed"], report["quality"]
    scored = s["photos_scored"]
    how = "whole run" if scored == s["photos"] else f"extrapolated from {scored} photos"
    one_by_one = s["pairs_per_cpu_second"] / s["pairs_per_cpu_second_one_by_one"]
    note = (
        f"`{report['model']}` (LRCN_2f), {q['photos']} dev photos and {q['captions']} captions of Flickr8k "
        f"small. Scoring {s['photos']} x {s['captions']} pairs takes {s['cpu_minutes_in_all']:.0f} minutes "
        f"of one core's time and at most {s['peak_rss_mb']:.0f} MB of memory ({how}): "
        f"{s['pairs_per_cpu_second']:.0f} pairs a second, {one_by_one:.1f} times as many as pair by pair; "
        f"{report['environment']['cpu']}, {report['environment']['isa']} "
        f"([data](../benchmarks/results/{path.name}))."
    )
    return f"{retrieval.markdown(report)}\n\n{note}\n"


def described() -> str:
    """The three architectures of video description on the made-up corpus."""
    path, report = harness.newest("describe")
    seeds = len({run["seed"] for run in report["runs"]})
    note = (
        f'BLEU-4, %, mean of {seeds} seeds; "surer half": the half of the test clips whose CRF marginals are '
        f"the more certain. {report['test_sentences_seen']:.0%} of the test sentences occur word for word in "
        f"the training split ([data](../benchmarks/results/{path.name}))."
    )
    return f"{describe.markdown(report)}\n\n{note}\n"


def recognised() -> str:
    """Activity recognition on UT-Interaction: every system, and the controls."""
    path, report = harness.newest("ut_interaction")
    note = (
        f"{report['data']}; mean of {len(report['seeds'])} seeds. Settings: {report['settings']} "
        f"([data](../benchmarks/results/{path.name}); "
        "[folds and confusion matrices](../benchmarks/results/ut_interaction.md))."
    )
    return f"{ut_interaction.systems_table(report)}\n\n{note}\n"


def described_videos() -> str:
    """Description of real clips from their frames, with sentences made up from the labels."""
    path, report = harness.newest("describe_videos")
    note = f"{report['data']}. %, means over the seeds ([data](../benchmarks/results/{path.name}))."
    return f"{describe_videos.markdown(report)}\n\n{note}\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed.summary,
    **{f"speed-{name}": functools.partial(speed.full, name) for name in speed.QUESTIONS},
    "limits": limits,
    "accuracy": rounding,
    "encoders": encoders,
    "captions": captions,
    "paper-captions": ablation,
    "paper-recognition": recognised,
    "paper-retrieval": retrieved,
    "paper-unit-captions": unit_captions,
    "paper-unit-retrieval": unit_retrieval,
    "paper-description": described,
    "video-description": described_videos,
}


def render(text: str) -> str:
    """The text with every block made anew."""
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m["name"]]() + m[4], text)


def main() -> int:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check = parser.parse_args().check
    stale = 0
    for page in PAGES:
        old = page.read_text()
        new = render(old)
        if new == old:
            continue
        if check:
            print(f"{page.name} is stale: run python benchmarks/report.py", file=sys.stderr)
            stale = 1
        else:
            page.write_text(new)
    return stale


if __name__ == "__main__":
    sys.exit(main())
