"""The command line: results, exit statuses and one-line errors, on a small model and synthetic photos."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_photos import photo, tiny_config, write_data_set

pytest.importorskip("typer")
from lrcn_fast import cli, runtime
from lrcn_fast.data import Vocabulary
from lrcn_fast.models import Captioner, Generation


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    words = Vocabulary.from_words(["a", "red", "blue", "square", "stripe", "on", "grey", "there", "is"])
    model = Captioner(
        "timm/test_resnet", "2f", words, embed_dim=12, hidden_size=16, encoder_weights=None, init_scale=0.5
    )
    folder = tmp_path_factory.mktemp("bundle")
    model.eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("shapes"), copies=1)


@pytest.fixture(scope="module")
def photos(data_set):
    return sorted(str(p) for p in (data_set.parent / "images").iterdir())


@pytest.fixture
def run(capsys):
    """Run a command in this process -> (exit status, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return stop.value.code, out, err

    return call


def caption(bundle, *more):
    return ("caption", *more, "--model", bundle, "--max-new-tokens", 6)


# ---- caption ----------------------------------------------------------------------------------


def test_caption_files_folders_and_globs(run, bundle, photos):
    folder = str(Path(photos[0]).parent)
    status, out, err = run(*caption(bundle, *photos))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split("\t")[0] for line in lines] == photos
    model = Captioner.from_pretrained(bundle)
    expected = [c[0].text for c in model.caption(photos, num_beams=5, max_new_tokens=6)]
    assert [line.split("\t")[1] for line in lines] == expected
    assert run(*caption(bundle, folder)) == (0, out, "")
    assert run(*caption(bundle, folder + "/*.png")) == (0, out, "")


def test_caption_nbest_json(run, bundle, photos):
    status, out, _ = run(*caption(bundle, photos[0], "--beam", 4, "--nbest", 3, "--json"))
    assert status == 0
    (record,) = map(json.loads, out.splitlines())
    assert record["image"] == photos[0]
    model = Captioner.from_pretrained(bundle)
    expected = model.caption(photos[0], num_beams=4, num_return_sequences=3, max_new_tokens=6)[0]
    assert [c["text"] for c in record["captions"]] == [c.text for c in expected]
    assert [c["score"] for c in record["captions"]] == [c.score for c in expected]
    assert len(record["captions"][0]["token_logprobs"]) == len(expected[0].token_logprobs)
    status, out, _ = run(*caption(bundle, photos[0], "--num-beams", 4, "--num-return-sequences", 3))
    assert [line.split("\t")[2] for line in out.splitlines()] == [c.text for c in expected]


def stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_caption_searches_as_the_model_does(run, photos, tmp_path):
    torch.manual_seed(0)
    own = Generation(num_beams=3, length_penalty=2.0, max_new_tokens=6)
    words = ["a", "red", "blue", "square", "on", "grey", "there", "is"]
    model = Captioner(
        "timm/test_resnet", "1u", words, embed_dim=12, hidden_size=16, encoder_weights=None, init_scale=0.5,
        generation=own,
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    for more, options in (
        ([], {}),
        (["--beam", 2], {"num_beams": 2}),
        (["--length-penalty", -1], {"length_penalty": -1.0}),
        (["--nbest", 4], {"num_return_sequences": 4}),
    ):
        status, out, err = run("caption", photos[0], "--model", tmp_path, "--json", *more)
        assert (status, err) == (0, "")
        (record,) = map(json.loads, out.splitlines())
        expected = model.caption(photos[0], **options)[0]
        assert [(c["text"], c["score"]) for c in record["captions"]] == [(c.text, c.score) for c in expected]


def test_caption_reads_stdin(run, bundle, photos, monkeypatch):
    expected = run(*caption(bundle, *photos[:2]))
    stdin(monkeypatch, "\n".join(photos[:2]).encode() + b"\n")
    assert run(*caption(bundle, "-")) == expected
    stdin(monkeypatch, Path(photos[0]).read_bytes())
    status, out, _ = run(*caption(bundle, "-"))
    assert status == 0
    assert out.split("\t")[0] == "stdin"
    assert out.split("\t")[1] == expected[1].splitlines()[0].split("\t")[1] + "\n"
    stdin(monkeypatch, b"\0\1\2 not a photo")
    status, out, err = run(*caption(bundle, "-"))
    assert (status, out) == (1, "")
    assert err == "lrcn-fast caption: stdin must be file names or the bytes of one photo, got other bytes\n"


def test_one_bad_file_among_good_ones(run, bundle, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    missing = tmp_path / "missing.jpg"
    status, out, err = run(*caption(bundle, photos[0], bad, missing, photos[1]))
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == photos[:2]
    lines = err.splitlines()
    assert len(lines) == 2
    assert "bad.jpg must be an image" in lines[0]
    assert "missing.jpg must be an image, got no such file" in lines[1]
    status, out, err = run(*caption(bundle, bad))
    assert (status, out, len(err.splitlines())) == (1, "", 1)


def test_nothing_to_caption(run, bundle, tmp_path):
    status, out, err = run(*caption(bundle, tmp_path))
    assert (status, out) == (1, "")
    assert "must hold photos (.bmp" in err
    status, _, err = run(*caption(bundle, str(tmp_path / "*.jpg")))
    assert status == 1
    assert "must match files, got none" in err
    status, out, err = run(*caption(bundle, ""))
    assert status == 1
    assert "PHOTO must be a file, a folder, a pattern or -, got an empty name" in err


def test_names_of_any_bytes(bundle, photos, tmp_path):
    """A strict terminal encoding must not stop the photos behind a name it cannot show."""
    command = [sys.executable, "-m", "lrcn_fast.cli", "caption", "--model", os.fspath(bundle)]
    name = os.path.join(os.fsencode(tmp_path), b"\xff.jpg")
    Path(os.fsdecode(name)).write_bytes(Path(photos[0]).read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, name, b"gone\xff.jpg", photos[1]], capture_output=True, env=environment)
    assert done.returncode == 1
    assert [line.partition(b"\t")[0] for line in done.stdout.splitlines()] == [name, os.fsencode(photos[1])]
    assert done.stderr.count(b"\n") == 1
    assert rb"gone\udcff.jpg" in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beam", "0"], "--beam"),
        (["--beam", "5", "--nbest", "9"], "--nbest must be at most --beam = 5, got 9"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--dtype", "fp4"], "'fp4' is not one of"),
        (["--colour"], "No such option"),
        (["--nbest", "1025"], "1024"),
        (["--length-penalty", "nan"], "must be a finite number, got nan"),
        pytest.param(
            ["--device", "cuda"],
            "--device must be cpu without an NVIDIA GPU, got cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_usage_errors_exit_2(run, bundle, photos, more, message):
    status, out, err = run(*caption(bundle, photos[0], *more))
    assert (status, out) == (2, "")
    assert message in err


def test_unusable_models(run, bundle, photos, tmp_path):
    status, _, err = run("caption", photos[0], "--model", tmp_path)
    assert status == 1
    assert err.startswith("lrcn-fast: from_pretrained:")
    assert "config.json must be the configuration of a captioner (JSON), got no such file" in err
    status, _, err = run("caption", photos[0], "--model", "nothing")
    assert status == 1
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(photos, tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(["caption", photos[0], "--model", str(tmp_path), "--debug"])


# ---- train ------------------------------------------------------------------------------------


def test_train_then_caption(run, data_set, tmp_path, photos):
    values = tiny_config(data_set)
    values["phases"] = [{"name": "caption", "steps": 3, "batch_size": 4, "max_new_tokens": 6}]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    status, printed, err = run(
        "train", "--config", config, "--out", out, "--set", "phases.0.steps=2", "--device", "cpu"
    )
    assert (status, err) == (0, "")
    assert printed.splitlines()[0] == str(out / "model")
    assert any(line.startswith("cider_d\t") for line in printed.splitlines())
    assert run("caption", photos[0], "--model", out / "model")[0] == 0
    status, _, err = run("train", "--config", config, "--out", out, "--device", "cpu")
    assert status == 1
    assert "checkpoint.pt must be of this configuration, got another phases[0].steps (2 there, 3 here)" in err
    status, _, err = run(
        "train", "--config", config, "--out", out, "--set", "phases.0.lr=1", "--device", "cpu"
    )
    assert status == 1
    assert "run.yaml: phases[0].lr must be one of name," in err
    assert run("train", "--out", out)[0] == 2


# ---- eval -------------------------------------------------------------------------------------


def test_eval_scores_candidates(run, data_set, tmp_path):
    records = json.loads(data_set.read_text())
    perfect = {r["file"]: r["sentences"][1] for r in records}
    path = tmp_path / "candidates.json"
    path.write_text(json.dumps(perfect))
    status, out, err = run("eval", "--references", data_set, "--candidates", path, "--json")
    assert (status, err) == (0, "")
    scores = json.loads(out)
    assert scores["photos"] == 8
    assert scores["bleu_4"] == pytest.approx(1, abs=1e-6)
    path.write_text(json.dumps([{"image_id": k, "caption": v} for k, v in perfect.items()]))
    assert json.loads(run("eval", "--references", data_set, "--candidates", path, "--json")[1]) == scores
    status, out, _ = run("eval", "--references", data_set, "--candidates", path)
    assert f"cider_d\t{scores['cider_d']:.4f}" in out.splitlines()


def test_eval_of_candidates_needs_no_photos(run, tmp_path):
    references, candidates = tmp_path / "refs.json", tmp_path / "found.json"
    references.write_text(json.dumps({"a.jpg": ["a dog runs"], "c.jpg": ["a cat sits"]}))
    candidates.write_text(json.dumps({"a.jpg": "a dog runs", "c.jpg": "a cat sits"}))
    given = ("eval", "--references", references, "--candidates", candidates, "--json")
    without = run(*given)
    assert (without[0], without[2]) == (0, "")
    (tmp_path / "a.jpg").write_bytes(b"")  # one photo of two, and not even a good one
    assert run(*given) == without


def test_eval_of_a_model_is_eval_of_its_captions(run, bundle, data_set, photos, tmp_path):
    out = tmp_path / "out.json"
    status, by_model, err = run("eval", "--references", data_set, "--model", bundle, "--json", "--out", out)
    assert (status, err) == (0, "")
    assert len(json.loads(out.read_text())) == 8
    lines = run("caption", *photos, "--model", bundle, "--json")[1]
    path = tmp_path / "candidates.jsonl"
    path.write_text(lines)
    assert run("eval", "--references", data_set, "--candidates", path, "--json")[1] == by_model


def test_eval_errors(run, bundle, data_set, tmp_path):
    assert run("eval", "--references", data_set)[0] == 2
    status, _, err = run("eval", "--references", data_set, "--candidates", "x", "--metric", "rouge")
    assert status == 2
    assert "--metric must be meteor or spice, got 'rouge'" in err
    status, _, err = run("eval", "--references", data_set, "--candidates", "x", "--split", "nowhere")
    assert status == 2
    assert "--split must be one of" in err
    path = tmp_path / "candidates.json"
    for content, message in (
        ("{", "candidates.json must be"),
        ("[1]", "got other JSON"),
        ("{}", "got nothing"),
        ('{"other.png": "a dog"}', "candidates must have the ids of the references = 8"),
    ):
        path.write_text(content)
        status, _, err = run("eval", "--references", data_set, "--candidates", path)
        assert status == 1
        assert message in err
        assert len(err.splitlines()) == 1
    status, _, err = run("eval", "--references", tmp_path / "nothing.json", "--candidates", path)
    assert status == 1
    assert "nothing.json must be a file" in err


# ---- demo and info ----------------------------------------------------------------------------


def test_demo_writes_table_and_gallery(run, bundle, tmp_path):
    pytest.importorskip("skimage")
    out = tmp_path / "gallery.png"
    status, printed, err = run("demo", "--model", bundle, "--out", out, "--max-new-tokens", 6, "--json")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [r["photo"] for r in rows][:4] == ["coffee", "chelsea", "astronaut", "rocket"]
    assert all(r["identical"] and r["decoder_ms"] > 0 and r["pytorch_ms"] > 0 for r in rows)
    from PIL import Image

    assert Image.open(out).format == "PNG"
    status, printed, _ = run("demo", "--model", bundle, "--out", out, "--max-new-tokens", 6)
    assert "identical" in printed
    assert "chelsea" in printed


def test_demo_without_the_photos(run, bundle, monkeypatch):
    import lrcn_fast._demo

    monkeypatch.setattr(lrcn_fast._demo, "PHOTOS", ("no_such_photo.png",))
    status, _, err = run("demo", "--model", bundle)
    assert (status, err) == (
        1,
        "lrcn-fast: the demo needs the photos of scikit-image: pip install 'lrcn_fast[demo]'\n",
    )


def test_demo_refuses_other_tokens(run, bundle, monkeypatch, tmp_path):
    pytest.importorskip("skimage")
    from lrcn_fast import reference_decoder

    real = reference_decoder.generate

    def wrong(*args, **options):
        result = real(*args, **options)
        result.sequences[0, 0, 0] = 2 if result.sequences[0, 0, 0] != 2 else 3
        return result

    monkeypatch.setattr(reference_decoder, "generate", wrong)
    out = tmp_path / "gallery.png"
    status, printed, err = run("demo", "--model", bundle, "--out", out)
    assert (status, printed) == (1, "")
    assert "demo: tokens of coffee must be those of the search in PyTorch" in err
    assert not out.exists()


def test_info(run):
    status, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["torch"] == torch.__version__
    assert facts["instruction set"] in ("generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
    assert "torch " in run("info")[1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lrcn_fast import cli\n"
        "try:\n    cli.main(['caption', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'timm', 'matplotlib', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--num-beams" in done.stdout
    assert "--nbest" in done.stdout


def test_no_arguments_shows_help(run):
    status, out, err = run()
    assert status == 2
    assert "caption" in out + err


def test_photo_fixture_is_a_photo():
    assert photo("red", "square").size == (48, 40)


# ---- export -----------------------------------------------------------------------------------


def test_export_captions_alike_without_torch(run, bundle, photos, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "small"
    status, out, err = run("export", bundle, "--out", folder, "--json")
    assert (status, json.loads(out), err) == (0, {"model": str(folder)}, "")
    expected = [line.split("\t")[1] for line in run(*caption(bundle, *photos[:3]))[1].splitlines()]
    found = runtime.Captioner(folder).caption(photos[:3], max_new_tokens=6)
    assert [captions[0].text for captions in found] == expected


def test_export_errors(run, bundle, tmp_path):
    status, out, err = run("export", bundle, "--out", tmp_path / "small", "--dtype", "int8")
    assert (status, out) == (1, "")
    assert err == "lrcn-fast: export_captioner: dtype must be float32 or bfloat16, got 'int8'\n"
    assert not (tmp_path / "small").exists()
    assert run("export", tmp_path / "none", "--out", tmp_path / "small")[0] == 1
    assert run("export", bundle)[0] == 2


# ---- convert ----------------------------------------------------------------------------------


def test_convert_errors(run, tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(b"no model")
    out = tmp_path / "out"
    for model, problem in (("net.caffemodel", "truncated or foreign"), ("nothing", "no such file")):
        status, printed, err = run("convert", "--from", "caffe", tmp_path / model, "--out", out)
        assert (status, printed, len(err.splitlines())) == (1, "", 1)
        assert problem in err
    assert not out.exists()
    assert run("convert", "--from", "tf", tmp_path / "net.caffemodel", "--out", out)[0] == 2
