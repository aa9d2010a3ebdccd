"""The harness and the tables made from what it measured: rounds, ratios, best peers, means."""

import json
import math
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import harness  # noqa: E402
import speed  # noqa: E402

INFERENCE = speed.QUESTIONS["inference"]


def report(*cases, **environment):
    """A result file; a variant is one list of samples a process."""

    def variant(samples):
        medians = [sorted(s)[len(s) // 2] for s in samples]
        return {"us": samples, "median_us": sorted(medians)[len(medians) // 2]}

    return {
        "environment": {"threads": 1, "processes": 3, "cpu": "a CPU", "isa": "avx2", "torch": "2"}
        | environment,
        "cases": [
            {
                "case": {"what": "inference", "T": 20, "B": B, "I=H": 256},
                "variants": {name: variant(samples) for name, samples in variants.items()},
            }
            for B, variants in cases
        ],
    }


def test_cell_takes_the_fastest_peer_of_its_precision_and_its_ratio_by_process():
    data = report(
        (
            1,
            {
                "torch float32": [[900.0] * 3] * 3,
                "ONNX Runtime float32": [[300.0] * 3, [400.0] * 3, [200.0] * 3],
                "OpenVINO bfloat16, ran in f32": [[50.0] * 3] * 3,
                "lrcn_fast float32": [[100.0, 100.0, 999.0], [100.0] * 3, [400.0] * 3],
            },
        )
    )
    (cell,) = speed.cells(data, INFERENCE)
    assert cell.best == speed.Name("ONNX Runtime", "float32", "")
    assert cell.us == 100
    assert (cell.ratio, cell.ratio_range) == (3.0, (0.5, 4.0))
    assert {name.who: us for name, us in cell.peers.items()} == {"torch": 900, "ONNX Runtime": 300}
    assert cell.label == "B=1, H=256"


def test_int8_lstm_is_held_against_bfloat16_too_and_a_search_is_not():
    samples = {
        "torch float32": [[1.0] * 3] * 3,
        "torch bfloat16": [[40.0] * 3] * 3,
        "torch int8": [[90.0] * 3] * 3,
        "lrcn_fast int8": [[20.0] * 3] * 3,
    }
    (cell,) = speed.cells(report((1, samples)), INFERENCE)
    assert cell.ratio == 2
    assert cell.called(cell.best) == "torch bfloat16"
    (cell,) = speed.cells(report((1, samples)), speed.QUESTIONS["decode"])
    assert cell.ratio == 4.5


def test_float32_stands_in_for_a_precision_that_no_peer_has():
    samples = {"torch float32": [[30.0] * 3], "lrcn_fast bfloat16": [[20.0] * 3]}
    (cell,) = speed.cells(report((1, samples)), INFERENCE)
    assert (cell.ratio, cell.called(cell.best)) == (1.5, "torch float32")


def test_cell_without_peers_is_unknown_not_lost():
    (cell,) = speed.cells(report((1, {"lrcn_fast float32": [[1.0] * 3]})), INFERENCE)
    assert cell.best is None
    assert math.isnan(cell.ratio)
    assert speed.slower([cell]) == []
    assert math.isnan(speed.geometric_mean([cell.ratio]))


def test_limit_is_the_slower_floor():
    samples = {
        "lrcn_fast float32": [[100.0] * 3, [200.0] * 3, [100.0] * 3],
        "lrcn_fast int8": [[100.0] * 3] * 3,
        "read float32": [[40.0] * 3, [40.0] * 3, [90.0] * 3],
        "multiply-add float32": [[50.0] * 3] * 3,
    }
    float32, int8 = speed.cells(report((1, samples)), INFERENCE)
    assert float32.limit == 0.5  # of 0.5, 0.25 and 0.9
    assert int8.limit is None


def test_caption_says_what_the_limit_would_give(monkeypatch):
    samples = {"torch float32": [[200.0] * 3], "lrcn_fast float32": [[100.0] * 3]}
    samples |= {"read float32": [[80.0] * 3], "multiply-add float32": [[50.0] * 3]}
    monkeypatch.setattr(
        speed, "runs", lambda file: [(Path("lstm-1.json"), report((1, samples)))] * (file == "lstm")
    )
    assert "geometric mean 2.00x, 0 of 1 below 1; at the limit it would be 2.50x" in speed.full("inference")


def one_fast_one_slow():
    """Ours takes 10 ms; torch 40 in the first cell, 9 in the second."""
    cells = ((1, 4e4), (5, 9e3))
    return report(*((B, {"torch float32": [[us] * 3], "lrcn_fast float32": [[1e4] * 3]}) for B, us in cells))


def test_geometric_mean_and_losing_cells():
    assert speed.geometric_mean([2.0, 8.0, math.nan, 0.5]) == pytest.approx(2.0)
    found = speed.cells(one_fast_one_slow(), INFERENCE)
    assert [cell.case["B"] for cell in speed.slower(found)] == [5]


def test_tables_say_which_cells_lose(monkeypatch):
    monkeypatch.setattr(
        speed, "runs", lambda file: [(Path("lstm-x.json"), one_fast_one_slow())] * (file == "lstm")
    )
    text = speed.full("inference")
    assert "**float32, 1 thread**: geometric mean 1.90x, 1 of 2 below 1" in text
    assert "| B=1, H=256 | 10 | 40 | 4.00x (4.00-4.00) torch |" in text
    assert "| B=5, H=256 | 10 | 9 | **0.90x (0.90-0.90) torch** |" in text
    row = next(line for line in speed.summary().splitlines() if line.startswith("| LSTM inference"))
    assert "| 0.90x to 4.00x | not measured | B=5, H=256: 10 ms, 0.90x torch | B=1" in row
    assert speed.full("training") == "Not measured.\n"


def test_variant_must_name_its_precision():
    with pytest.raises(ValueError, match="must end in its precision, got 'torch'"):
        speed.Name.of("torch")


def test_rounds_follow_the_budget_and_hopeless_variants_get_three():
    variants = {
        "torch float32": lambda: time.sleep(0.03),
        "torch bfloat16": lambda: time.sleep(0.25),
        "lrcn_fast float32": lambda: time.sleep(0.03),
    }
    timed = harness.compare(variants, check=lambda actual, expected: None, rounds=50, seconds=0.4)
    counts = {name: len(v["us"]) for name, v in timed.items()}
    assert counts["torch bfloat16"] == 3
    assert counts["torch float32"] == counts["lrcn_fast float32"]
    assert 4 <= counts["torch float32"] <= 7


def test_long_calls_are_samples_at_once(monkeypatch):
    monkeypatch.setattr(harness, "LONG_US", 0.21e6)
    monkeypatch.setattr(harness, "ENDLESS_US", 0.3e6)
    calls = {"long": 0, "endless": 0}

    def sleep(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    variants = {"long": lambda: sleep("long", 0.22), "endless": lambda: sleep("endless", 0.32)}
    timed = harness.compare(variants, check=lambda actual, expected: None, rounds=3)
    assert calls == {"long": 3, "endless": 1} == {name: len(v["us"]) for name, v in timed.items()}


def test_wrong_results_are_not_timed_and_errors_are_kept():
    def check(actual, expected):
        assert abs(actual - expected) < 0.5
        return abs(actual - expected)

    with pytest.raises(AssertionError):
        harness.compare({"torch float32": lambda: 1.0, "lrcn_fast float32": lambda: 2.0}, check=check)
    timed = harness.compare(
        {"torch float32": lambda: 1.0, "lrcn_fast int8": lambda: 1.25}, check=check, rounds=1, seconds=0.1
    )
    assert timed["lrcn_fast int8"]["error"] == 0.25


def test_newest_file_is_that_of_the_environment_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    base = {"cpu": "A CPU", "gpu": None}
    asked = {
        "lstm-a-cpu": {"threads": 1, "forced_isa": None},
        "lstm-a-cpu-2threads": {"threads": 2, "forced_isa": None},
        "lstm-a-cpu-generic": {"threads": 1, "forced_isa": "generic"},
    }
    for env in asked.values():
        harness.save(tmp_path, "lstm", {"environment": base | env, "cases": []})
    for name, env in asked.items():
        assert harness.newest("lstm", **env)[0].name.rpartition("-")[0] == name
    with pytest.raises(FileNotFoundError, match="lstm"):
        harness.newest("lstm", threads=4)


def test_every_cpu_has_its_own_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for cpu, us, day in (("An old CPU", 2e4, 20260101), ("A new CPU", 3e4, 20260102)):
        found = report((1, {"torch float32": [[us] * 3], "lrcn_fast float32": [[1e4] * 3]}))
        found["environment"] |= {"cpu": cpu, "forced_isa": None}
        (tmp_path / f"lstm-{cpu.split()[1]}-{day}.json").write_text(json.dumps(found))
    assert harness.cpus("lstm") == ["A new CPU", "An old CPU"]
    new, old = (part for part in speed.summary().split("| times as fast")[1:])
    assert "| 3.00x | not measured |" in new
    assert "A new CPU" in new
    assert "| 2.00x | not measured |" in old
    assert "An old CPU" in old
