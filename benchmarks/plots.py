"""Draw the figures of docs/ from the committed result files: ``python benchmarks/plots.py``."""

import itertools
import statistics
from pathlib import Path
from typing import Any

import harness
import matplotlib as mpl
import numpy as np
import speed
import units

mpl.use("Agg")
from matplotlib import pyplot as plt

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
BEAMS = {1: "greedy", 2: "beam 2", 3: "beam 3", 4: "beam 4", 5: "beam 5", 10: "beam 10"}
DRAWS = {1: "sample N=1 T=2", 10: "sample N=10 T=2", 25: "sample N=25 T=2", 100: "sample N=100 T=2"}
COLOURS = {"1u": "tab:blue", "2u": "tab:orange", "2f": "tab:green"}


def captions() -> None:
    """The paper's ablations on our data: variant, CNN, beam width, number of draws, novelty."""
    _, report = harness.newest("flickr8k")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, run in report["runs"].items():
        variant, _, cnn = name.partition("_")
        if cnn not in ("frozen", "finetuned"):
            continue
        decoding: dict[str, Any] = run["decoding"]
        style: dict[str, Any] = {
            "color": COLOURS[variant],
            "linestyle": "-" if cnn == "finetuned" else "--",
            "marker": "o",
            "markersize": 3,
            "label": f"{variant}, CNN {cnn.replace('finetuned', 'fine-tuned')}",
        }
        left.plot(list(BEAMS), [decoding[w]["cider_d"] for w in BEAMS.values()], **style)
        middle.plot(list(DRAWS), [decoding[w]["cider_d"] for w in DRAWS.values()], **style)
        right.scatter(
            [100 * decoding[w]["vocabulary_share"] for w in decoding],
            [100 * decoding[w]["novel"] for w in decoding],
            s=14,
            color=COLOURS[variant],
            marker="o" if cnn == "finetuned" else "x",
        )
    baseline = max(scores["cider_d"] for scores in report["baseline"].values())
    for axes, label in ((left, "beam width"), (middle, "captions drawn at T=2, the likeliest kept")):
        axes.axhline(baseline, color="grey", linewidth=1, label="nearest neighbour")
        axes.set(xlabel=label, ylabel="CIDEr-D", xscale="log", ylim=(0, None))
        axes.set_xticks(list(BEAMS if axes is left else DRAWS))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    left.legend(fontsize=7, loc="lower right")
    right.set(xlabel="vocabulary used, %", ylabel="sentences not among the training captions, %")
    figure.suptitle("LRCN on the 113 dev photos of Flickr8k-small", fontsize=10)
    figure.savefig(FIGURES / "captions.png", dpi=110)


def recognition() -> None:
    """Systems on UT-Interaction, and what the best of them takes for what."""
    _, report = harness.newest("ut_interaction")
    systems = report["systems"]
    names = [*systems, *report["controls"]]
    values = [100 * systems[n]["accuracy"] for n in systems]
    values += [100 * c["accuracy"] for c in report["controls"].values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    colours = ["tab:grey" if n in report["controls"] else _colour(n) for n in names]
    left.barh(range(len(names)), values, color=colours)
    for i, name in enumerate(names):
        for seed in systems[name]["seeds"] if name in systems else ():
            left.plot(100 * seed, i, "k|", markersize=6)
    left.axvline(100 / len(report["classes"]), color="black", linewidth=1, linestyle=":")
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.invert_yaxis()
    left.set(xlabel="accuracy, %; ticks: seeds; dotted: chance", xlim=(0, 100))
    best = max(systems, key=lambda n: systems[n]["accuracy"])
    confusion = np.array(systems[best]["confusion"])
    right.imshow(confusion, cmap="Blues")
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if count > confusion.max() / 2 else "black"
        right.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(report["classes"]))
    right.set_xticks(ticks, report["classes"], rotation=30, ha="right", fontsize=8)
    right.set_yticks(ticks, report["classes"], fontsize=8)
    right.set(xlabel=f"{best}: predicted (clips of all seeds)", ylabel="true")
    figure.suptitle("UT-Interaction set 1, one sequence of ten held out at a time", fontsize=10)
    figure.savefig(FIGURES / "recognition.png", dpi=100)


def _colour(name: str) -> str:
    if "+" in name:
        return "tab:green"
    return "tab:orange" if "single" in name else "tab:blue"


def rnn_and_lstm() -> None:
    """Plain recurrent layers against LSTM: what is learned over the epochs, and CIDEr-D by way to decode."""
    _, report = harness.newest("units")
    figure, (loss, cider, ways) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    colours = {"rnn": "tab:red", "lstm": "tab:blue"}
    names: list[str] = []
    for unit, epochs, runs in units.groups(report):
        few = len(runs) == 1
        style: dict[str, Any] = {"color": colours[unit], "linestyle": ":" if few else "-"}
        label = f"{unit.upper()}, {epochs} epochs, {len(runs)} seed{'' if few else 's'}"
        for ax, key in ((loss, "validation_loss"), (cider, "cider_d")):
            curves = [[entry[key] for entry in run["epochs"]] for run in runs]
            x = range(1, epochs + 1)
            for curve in curves:
                ax.plot(x, curve, **style, linewidth=0.6, alpha=0.5)
            ax.plot(
                x, [statistics.mean(values) for values in zip(*curves, strict=True)], **style, label=label
            )
        names = list(runs[0]["decoding"])
        shift = (-0.12 if unit == "rnn" else 0.12) * (2 if few else 1)
        for at, way in enumerate(names):
            scores = [run["decoding"][way]["cider_d"] for run in runs]
            ways.plot([at + shift] * 2, [min(scores), max(scores)], color=colours[unit], linewidth=1)
            marker = "x" if few else "o"
            ways.plot(at + shift, statistics.mean(scores), marker, color=colours[unit], markersize=4)
    loss.set(xlabel="epoch", ylabel="loss of a dev word, nats")
    cider.set(xlabel="epoch", ylabel="CIDEr-D, greedy")
    ways.set(ylabel="CIDEr-D; crosses: 25 epochs", ylim=(0, None))
    ways.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    loss.legend(fontsize=8)
    figure.suptitle("LRCN_2f with RNN and with LSTM layers, 113 dev photos of Flickr8k-small", fontsize=10)
    figure.savefig(FIGURES / "units.png", dpi=110)


def speeds() -> None:
    """Ratio to the best peer in every cell, by question, CPU and threads; bars: range over processes."""
    names = ("inference", "training", "decode")
    rows = list(itertools.product(harness.cpus("lstm"), (1, 2)))
    figure, grid = plt.subplots(
        len(rows),
        3,
        figsize=(12, 3 * len(rows)),
        sharey=True,
        squeeze=False,
        width_ratios=(5, 5, 1),
        layout="constrained",
    )
    colours = {"float32": "tab:blue", "bfloat16": "tab:orange", "int8": "tab:green"}
    for column, name in enumerate(names):
        question = speed.QUESTIONS[name]
        grid[0, column].set_title(question.title.partition(",")[0], fontsize=9)
        for row, (cpu, threads) in enumerate(rows):
            axes = grid[row, column]
            axes.axhline(1, color="black", linewidth=1)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(axis="y", linewidth=0.3)
            if not column:
                label = f"{cpu}, {threads} thread{'s' * (threads > 1)}"
                axes.set_ylabel(f"best peer / ours\n{label}", fontsize=8)
            try:
                _, report = harness.newest(question.file, cpu=cpu, threads=threads, forced_isa=None)
            except FileNotFoundError:
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
                axes.set_xticks([])
                continue
            _draw_cells(axes, [c for c in speed.cells(report, question) if c.best is not None], colours)
    handles = [plt.Line2D([], [], color=c, marker="o", linestyle="", label=p) for p, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(
        "How many times as fast as the best peer of the same precision; below 1: slower", fontsize=10
    )
    figure.savefig(FIGURES / "speed.png", dpi=100)


def _draw_cells(axes: Any, cells: list[speed.Cell], colours: dict[str, str]) -> None:
    labels = list(dict.fromkeys(cell.label for cell in cells))
    for k, (precision, colour) in enumerate(colours.items()):
        group = [cell for cell in cells if cell.ours.precision == precision]
        x = [labels.index(cell.label) + 0.2 * (k - 1) for cell in group]
        y = [cell.ratio for cell in group]
        bars = np.abs(np.array([cell.ratio_range for cell in group]).reshape(-1, 2).T - np.array(y))
        axes.errorbar(x, y, bars, fmt="o", markersize=4, linewidth=1, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    captions()
    recognition()
    rnn_and_lstm()
    speeds()
