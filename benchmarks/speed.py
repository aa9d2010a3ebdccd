"""What the result files of lstm.py, train.py and decode.py say: ours against the best peer, cell by cell.

A cell is one case in one precision. Its peers are those of the same precision in the same run; int8 is held
against bfloat16 peers too where that is asked. Where no peer has the precision, as bfloat16 training on a
CPU without the instructions, float32 is what there is to compare with. The ratio is peer's time / ours, its
median over the rounds of a process, then over processes; range over processes.
"""

import itertools
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import harness

PRECISIONS = ("float32", "bfloat16", "int8")
FLOORS = ("read", "multiply-add")


class Question(NamedTuple):
    """One group of cells: where they are, and how a table names them."""

    file: str  # the result file's question
    what: str | None  # the case's "what", if the file has several
    title: str
    int8_against: tuple[str, ...] = ("int8",)


LSTM_INT8 = ("int8", "bfloat16")
QUESTIONS = {
    "inference": Question("lstm", "inference", "LSTM inference, T=20", LSTM_INT8),
    "streaming": Question("lstm", "streaming", "LSTM, 20 frames one by one", LSTM_INT8),
    "lengths": Question("lstm", "lengths", "LSTM inference, rows of 1 to 500 steps"),
    "training": Question("train", "training step", "LSTM training step, T=20"),
    "training-lengths": Question("train", "lengths", "LSTM training step, rows of 1 to 500 steps"),
    "decode": Question("decode", None, "beam search, LRCN_2f, V=8801, E=H=1000, K=5, 20 steps"),
}


class Name(NamedTuple):
    """A variant's name, taken apart."""

    who: str
    precision: str
    remark: str

    @staticmethod
    def of(variant: str) -> "Name":
        """Take a variant's name apart."""
        name, _, remark = variant.partition(", ")
        who, _, precision = name.rpartition(" ")
        if precision not in PRECISIONS:
            raise ValueError(f"Name.of: a variant must end in its precision, got {variant!r}")
        return Name(who, precision, remark)

    @property
    def is_ours(self) -> bool:
        """Whether it is of this package."""
        return self.who.startswith(("lrcn_fast", "native"))


class Cell(NamedTuple):
    """Ours in one case and precision, beside its peers."""

    case: dict[str, Any]
    ours: Name
    us: float
    peers: dict[Name, float]  # microseconds
    best: Name | None  # of the peers
    ratio: float  # best peer's time / ours; NaN without a peer
    ratio_range: tuple[float, float]
    limit: float | None  # floor / ours
    error: float | None

    @property
    def label(self) -> str:
        """What tells it from the others of its question, whose title has the rest."""
        said = ("what", "threads", "T", "frames")
        return harness.label({k.removeprefix("I="): v for k, v in self.case.items() if k not in said})

    def called(self, name: Name) -> str:
        """A peer, with its precision if it is not ours."""
        return name.who if name.precision == self.ours.precision else f"{name.who} {name.precision}"


def cells(report: dict[str, Any], question: Question) -> list[Cell]:
    """Every cell of a question, by precision."""
    found = [
        _cell(case["case"], case["variants"], variant, question)
        for case in report["cases"]
        if question.what in (None, case["case"].get("what"))
        for variant in case["variants"]
        if not variant.startswith(FLOORS) and Name.of(variant).is_ours
    ]
    return sorted(found, key=lambda cell: PRECISIONS.index(cell.ours.precision))


def _cell(case: dict[str, Any], variants: dict[str, Any], variant: str, question: Question) -> Cell:
    ours, v = Name.of(variant), variants[variant]
    others = {name: Name.of(name) for name in variants if not name.startswith(FLOORS)}
    others = {name: parsed for name, parsed in others.items() if not parsed.is_ours}
    wanted = question.int8_against if ours.precision == "int8" else (ours.precision,)
    peers = [name for name in others if others[name].precision in wanted]
    peers = peers or [name for name in others if others[name].precision == "float32"]
    best = min(peers, key=lambda name: variants[name]["median_us"], default=None)
    ratios = [math.nan]
    if best is not None:
        ratios = [
            statistics.median(peer / own for own, peer in zip(a, b, strict=False))
            for a, b in zip(v["us"], variants[best]["us"], strict=True)
        ]
    return Cell(
        case,
        ours,
        v["median_us"],
        {others[name]: variants[name]["median_us"] for name in peers},
        None if best is None else others[best],
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        _limit(variants, v, ours.precision),
        v.get("error"),
    )


def _limit(variants: dict[str, Any], ours: dict[str, Any], precision: str) -> float | None:
    """The share of the slower floor in our time, median over processes."""
    names = tuple(f"{floor} {precision}" for floor in FLOORS)
    if not all(name in variants for name in names):
        return None
    floors = [variants[name]["us"] for name in names]
    return statistics.median(
        max(statistics.median(floor) for floor in process) / statistics.median(own)
        for own, *process in zip(ours["us"], *floors, strict=True)
    )


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of the ratios that are known; NaN if none is."""
    logs = [math.log(ratio) for ratio in ratios if not math.isnan(ratio)]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def slower(group: Iterable[Cell]) -> list[Cell]:
    """The cells in which a peer is faster."""
    return [cell for cell in group if cell.ratio < 1]


def runs(file: str) -> list[tuple[Path, dict[str, Any]]]:
    """Of each CPU, the newest results on its best instruction set with 1 and 2 threads, then forced."""
    found = []
    settings = ((None, 1), (None, 2), ("avx2", 1), ("generic", 1))
    for cpu, (forced, threads) in itertools.product(harness.cpus(file), settings):
        try:
            found.append(harness.newest(file, cpu=cpu, threads=threads, forced_isa=forced))
        except FileNotFoundError:
            continue
    return found


def full(name: str) -> str:
    """Every cell of a question, in all its runs."""
    question = QUESTIONS[name]
    parts: list[str] = []
    for path, report in runs(question.file):
        found = cells(report, question)
        for precision in PRECISIONS:
            group = [cell for cell in found if cell.ours.precision == precision]
            if group:
                parts += [_heading(precision, report["environment"], group), "", *_rows(group), ""]
        if found:
            parts += [_note(path, report), ""]
    return "\n".join(parts) or "Not measured.\n"


def _heading(precision: str, env: dict[str, Any], group: list[Cell]) -> str:
    isa = f", instruction set forced to {env['forced_isa']}" if env.get("forced_isa") else ""
    mean = _times(geometric_mean(cell.ratio for cell in group))
    text = f"**{precision}, {_threads(env)}{isa}**: geometric mean {mean}, {_losing(group)}"
    at_limit = geometric_mean(math.nan if cell.limit is None else cell.ratio / cell.limit for cell in group)
    return text if math.isnan(at_limit) else f"{text}; at the limit it would be {at_limit:.2f}x"


def _rows(group: list[Cell]) -> list[str]:
    columns = list(dict.fromkeys(cell.called(name) for cell in group for name in cell.peers))
    whose = len({cell.ours.who for cell in group}) > 1
    with_limit = any(cell.limit is not None for cell in group)
    with_error = any(cell.error is not None for cell in group)

    head = [""] + ["ours"] * whose + [f"{'' if whose else group[0].ours.who + ', '}ms", *columns]
    head += ["times as fast as the best"] + ["of the limit"] * with_limit + ["error"] * with_error
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell in group:
        peers = {cell.called(name): _ms(us, name) for name, us in cell.peers.items()}
        row = [cell.label] + [cell.ours.who] * whose + [_ms(cell.us, cell.ours)]
        row += [peers.get(column, "-") for column in columns] + [_ratio(cell)]
        row += ["-" if cell.limit is None else f"{cell.limit:.0%}"] * with_limit
        row += ["-" if cell.error is None else f"{cell.error:.1e}"] * with_error
        rows.append(f"| {' | '.join(row)} |")
    return rows


def summary() -> str:
    """A table of each CPU."""
    reports = [report for question in QUESTIONS.values() for _, report in runs(question.file)]
    cpus = dict.fromkeys(report["environment"]["cpu"] for report in reports)
    return "\n".join(_summary(cpu) for cpu in cpus) or "Not measured.\n"


def _summary(cpu: str) -> str:
    """One row a question and precision: each number of threads, and the extremes among all cells."""
    rows = ["| times as fast as the best peer | | 1 thread | 2 threads | worst | best |", "|---" * 6 + "|"]
    sources: dict[Path, dict[str, Any]] = {}
    for question in QUESTIONS.values():
        measured = [
            run
            for run in runs(question.file)
            if run[1]["environment"]["cpu"] == cpu and not run[1]["environment"].get("forced_isa")
        ]
        for precision in PRECISIONS:
            groups: dict[int, list[Cell]] = {1: [], 2: []}
            for path, report in measured:
                of_run = cells(report, question)
                found = [c for c in of_run if c.best is not None and c.ours.precision == precision]
                groups[report["environment"]["threads"]] = found
                if found:
                    sources[path] = report
            if not any(groups.values()):
                continue
            order = sorted(
                ((cell, threads) for threads, group in groups.items() for cell in group),
                key=lambda pair: pair[0].ratio,
            )
            overall = " | ".join(_overall(group) for group in groups.values())
            rows.append(
                f"| {question.title} | {precision} | {overall} | {_short(*order[0])} | {_short(*order[-1])} |"
            )
    env = next(iter(sources.values()))["environment"]
    data = ", ".join(f"[{path.stem}](benchmarks/results/{path.name})" for path in sources)
    note = (
        "Geometric means, or the range where there are three cells or fewer. Best peer: of the same "
        "precision and in the same run (an LSTM with int8 weights: of int8 or bfloat16; beam search: the "
        "same search in eager PyTorch; float32 where there is none). "
        f"{env['cpu']}, {env['isa']}, torch {env['torch']}; data: {data}. "
        "Every cell: [docs/speed.md](docs/speed.md)."
    )
    return "\n".join([*rows, "", note, ""])


def _overall(group: list[Cell]) -> str:
    if not group:
        return "not measured"
    if len(group) > 3:
        return f"{_times(geometric_mean(cell.ratio for cell in group))}, {_losing(group)}"
    return " to ".join(dict.fromkeys(_times(f(cell.ratio for cell in group)) for f in (min, max)))


def _short(cell: Cell, threads: int) -> str:
    who = "" if cell.ours.who in ("lrcn_fast", "native") else f" {cell.ours.who.removeprefix('lrcn_fast ')}"
    best = "" if cell.best is None else cell.called(cell.best)
    many = f" ({threads} threads)" if threads > 1 else ""
    return f"{cell.label}{who}{many}: {_ms(cell.us)} ms, {_times(cell.ratio)} {best}"


def _note(path: Path, report: dict[str, Any]) -> str:
    env = report["environment"]
    versions = "".join(
        f", {name} {version or 'not installed'}" for name, version in env.get("peers", {}).items()
    )
    return (
        f"Milliseconds, medians over {env['processes']} fresh processes (range of the ratio over them; bold: "
        f"a peer is faster); {env['cpu']}, {env['isa']}, {_threads(env)}, torch {env['torch']}{versions} "
        f"([data](../benchmarks/results/{path.name}))."
    )


def _threads(env: dict[str, Any]) -> str:
    return f"{env['threads']} thread" + ("s" if env["threads"] > 1 else "")


def _losing(group: list[Cell]) -> str:
    return f"{len(slower(group))} of {len(group)} below 1"


def _ms(us: float, name: Name | None = None) -> str:
    text = f"{us / 1e3:.3g}" if us < 1e6 else f"{us / 1e3:.0f}"
    return f"{text} ({name.remark})" if name and name.remark else text


def _times(ratio: float) -> str:
    return "unknown" if math.isnan(ratio) else f"{ratio:.2f}x"


def _ratio(cell: Cell) -> str:
    if cell.best is None:
        return "no peer"
    low, high = cell.ratio_range
    text = f"{_times(cell.ratio)} ({low:.2f}-{high:.2f}) {cell.called(cell.best)}"
    return f"**{text}**" if cell.ratio < 1 else text
