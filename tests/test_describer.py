"""VideoDescriber: the architectures against their equations, training, resuming, bundles, the command."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from test_cli import run

from lrcn_fast.data import CrfClip, CrfSet, kitchen_clips, write_crf_clips
from lrcn_fast.models import Generation, VideoDescriber, create_encoder
from lrcn_fast.models.captioner import pad_captions
from lrcn_fast.training import load_config, train

# ruff: noqa: F401, F811  (the fixture of test_cli)

NODES = {"activity": ("cut", "take out"), "object": ("carrot", "egg", "none")}
WORDS = ["the", "person", "carrot", "cut", "take", "out", "egg", "none", "cuts", "a", "on", "board"]
CLIPS = [
    CrfClip("a", ((0.7, 0.3), (0.5, 0.4, 0.1)), ("cut", "carrot")),
    CrfClip("b", ((0.1, 0.9), (0.2, 0.3, 0.5)), ("take out", "egg")),
    CrfClip("c", ((0.6, 0.4), (0.0, 0.0, 1.0)), ("cut", "none")),
]
SENTENCES = ["the person cuts a carrot", "egg out", "a person"]


def make(architecture, **options):
    torch.manual_seed(0)
    source = {"nodes": NODES}
    if architecture in ("mean_pool", "frame_lstm"):
        source = {"encoder": create_encoder("timm/test_resnet", weights=None), "num_frames": 3}
    options = {"embed_dim": 6, "hidden_size": 8, "init_scale": 0.5, **source, **options}
    return VideoDescriber(architecture, WORDS, **options).eval()


def clips_for(model, dtype=torch.float32):
    if model.nodes:
        return CLIPS
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 96, generator=generator, dtype=dtype) for n in (4, 1, 3)]


def targets(model):
    return pad_captions([model.vocabulary.encode_target(s) for s in SENTENCES], 0)


ALL = ["encoder_decoder", "decoder_max", "decoder_prob", "mean_pool", "frame_lstm"]
SEEN = {  # v of the clips of CLIPS
    "decoder_max": [[1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
    "decoder_prob": [[0.7, 0.3, 0.5, 0.4, 0.1], [0.1, 0.9, 0.2, 0.3, 0.5], [0.6, 0.4, 0, 0, 1]],
}


def expected_logits(model, clip, target):
    """The equations of the head of describer.py, with torch.nn.LSTM and one clip at a time."""
    decoder = model.decoder
    stack = torch.nn.LSTM(decoder.layers[0].input_size, 8, 2, batch_first=True).double()
    stack.load_state_dict({k: v.double() for k, v in decoder.layers[0].state_dict().items()})
    words = decoder.embedding.weight.double()
    if model.architecture == "encoder_decoder":
        inputs = words[[*model.label_words(clip), *target[:-1]]]  # T + T' - 1 steps
    else:
        if model.architecture in SEEN:
            v = torch.tensor(SEEN[model.architecture][CLIPS.index(clip)], dtype=torch.float64)
        elif model.architecture == "mean_pool":
            v = clip.double().mean(0)
        else:
            frames = torch.nn.LSTM(96, 8, batch_first=True).double()
            frames.load_state_dict({k: x.double() for k, x in model.frames.state_dict().items()})
            v = frames(clip.double()[None])[1][0][-1, 0]
        inputs = torch.cat([words[[0, *target[:-1]]], v.expand(len(target), -1)], 1)
    h = stack(inputs[None])[0][0, -len(target) :]
    return F.linear(h, decoder.projection.weight.double(), decoder.projection.bias.double())


@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_logits_are_the_equations(architecture):
    model = make(architecture)
    clips = clips_for(model)
    tokens, lengths = targets(model)
    actual = model(clips, tokens, lengths)
    expected = torch.cat(
        [expected_logits(model, c, w[:n].tolist()) for c, w, n in zip(clips, tokens, lengths, strict=True)]
    )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    loss = F.cross_entropy(expected, torch.cat([w[:n] for w, n in zip(tokens, lengths, strict=True)]))
    assert model.loss(clips, tokens, lengths).item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_sentences_score_what_the_loss_says_and_do_not_depend_on_the_batch(architecture):
    model = make(architecture)
    clips = clips_for(model)
    found = model.describe(clips, num_beams=4, num_return_sequences=2, max_new_tokens=6)
    for clip, captions in zip(clips, found, strict=True):
        alone = model.describe([clip], num_beams=4, num_return_sequences=2, max_new_tokens=6, batch_size=1)[0]
        assert [c.text for c in alone] == [c.text for c in captions]
        for c in captions:
            if c.text.endswith("...") or not c.text.strip("."):
                continue
            target = [*model.vocabulary.encode(c.text), 0]
            assert len(c.token_logprobs) == len(target)
            logp = expected_logits(model, clip, target).log_softmax(-1)
            assert c.score == pytest.approx(logp[range(len(target)), target].sum().item(), abs=1e-4)
    assert model.describe([]) == []


@pytest.mark.parametrize("architecture", ALL)
def test_learns_three_sentences(architecture):
    model = make(architecture, hidden_size=24, embed_dim=12, init_scale=0.0).train()
    clips, (tokens, lengths) = clips_for(model), targets(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(clips, tokens, lengths).backward()
        optimizer.step()
    found = model.eval().describe(clips, num_beams=2, max_new_tokens=8)
    assert [c[0].text.rstrip(".").lower() for c in found] == SENTENCES


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_prob", "frame_lstm"])
def test_bundle(tmp_path, architecture):
    model = make(architecture, generation=Generation(num_beams=2, max_new_tokens=5))
    model.save_pretrained(tmp_path, details={"data": "none"})
    again = VideoDescriber.from_pretrained(tmp_path)
    assert again.describe(clips_for(model)) == model.describe(clips_for(model))
    assert again.details == {"data": "none"}
    assert "VideoDescriber" in (tmp_path / "README.md").read_text()


def test_videos_are_read_and_encoded():
    model = make("mean_pool")
    video = torch.randint(0, 255, (7, 40, 48, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    features = model.features(video)
    assert features.shape == (3, 96)
    frames = torch.stack([model.encoder.preprocess(video[i]) for i in (1, 3, 5)])
    with torch.no_grad():
        torch.testing.assert_close(features, model.encoder(frames))
    assert model.describe([video], max_new_tokens=4) == model.describe([features], max_new_tokens=4)


def test_errors():
    model = make("decoder_prob")
    with pytest.raises(
        ValueError, match=r"clips must be CrfClips with \[2, 3\] labels \(activity, object\), got \[2\]"
    ):
        model.describe([CrfClip("x", ((0.5, 0.5),), ("cut",))])
    with pytest.raises(ValueError, match=r"clips must be CrfClips .* got str"):
        model.describe(["a.mp4"])
    for clips, got in (("clip.mp4", "'clip.mp4'"), (CLIPS[0], "one CrfClip")):
        with pytest.raises(ValueError, match=f"describe: clips must be a list of clips, got {got}"):
            model.describe(clips)
    with pytest.raises(ValueError, match="describe: batch_size must be an integer of at least 1, got 0"):
        model.describe(CLIPS, batch_size=0)
    with pytest.raises(ValueError, match="loss: lengths must be >= 1, got 0"):
        model.loss(CLIPS[:2], torch.zeros(2, 1, dtype=torch.int64), torch.tensor([1, 0]))
    for option, off in (({"no_repeat_ngram_size": 1}, 0), ({"repetition_penalty": 2.0}, 1.0)):
        with pytest.raises(NotImplementedError, match=f"must be {off} with encoder_decoder"):
            make("encoder_decoder").describe(CLIPS, **option)
        assert len(make("decoder_max").describe(CLIPS, **option)) == len(CLIPS)
    with pytest.raises(ValueError, match="must be in eval mode, got train mode"):
        make("decoder_max").train().describe(CLIPS)
    with pytest.raises(ValueError, match=r"architecture must be one of encoder_decoder, .* got 'lstm'"):
        make("lstm")
    with pytest.raises(ValueError, match="nodes must be given with architecture 'decoder_max', got nothing"):
        VideoDescriber("decoder_max", WORDS)
    with pytest.raises(
        ValueError, match="encoder must not be given with architecture 'decoder_max', got str"
    ):
        VideoDescriber("decoder_max", WORDS, nodes=NODES, encoder="efficientnet_lite0")
    with pytest.raises(ValueError, match=r"vocabulary must hold the words of the labels .* got none for egg"):
        VideoDescriber("encoder_decoder", [w for w in WORDS if w != "egg"], nodes=NODES)
    with pytest.raises(ValueError, match=r"features must be \[N, C\] = \[N >= 1, 96\], got \[0, 96\]"):
        make("mean_pool").describe([torch.zeros(0, 96)])
    with pytest.raises(ValueError, match="hidden_size must be an integer >= 1, got 0"):
        make("decoder_prob", hidden_size=0)


# ---- training and the command -----------------------------------------------------------------


def config(**changes):
    settings = {
        "model.hidden_size": 16, "model.embed_dim": 8, "data.kitchen_clips": 60, "phases.0.epochs": 2,
        "phases.0.evaluate_every": 2, "phases.0.batch_size": 32, "checkpoint_every": 1, **changes,
    }  # fmt: skip
    return load_config("kitchen_decoder_prob", [f"{k}={json.dumps(v)}" for k, v in settings.items()])


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_prob"])
def test_training_resumes_bit_for_bit(tmp_path, architecture, monkeypatch):
    c = config(**{"model.architecture": architecture})
    summary = train(c, tmp_path / "whole", device="cpu")
    assert {"validation_loss", "bleu_4", "cider_d"} <= set(summary["best"])

    from lrcn_fast.training import describing

    scores, calls = describing.DescribingTask._scores, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores(*args)

    monkeypatch.setattr(describing.DescribingTask, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        train(c, tmp_path / "killed", device="cpu")
    monkeypatch.setattr(describing.DescribingTask, "_scores", scores)
    train(c, tmp_path / "killed", device="cpu")
    whole, resumed = (VideoDescriber.from_pretrained(tmp_path / n / "model") for n in ("whole", "killed"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_training_needs_sentences(tmp_path):
    clips = kitchen_clips(20)
    bare = CrfSet(clips.nodes, (dataclasses.replace(c, sentences=()) for c in clips))
    write_crf_clips(tmp_path / "clips.jsonl", bare)
    with pytest.raises(ValueError, match=r"clips of clips\.jsonl must have sentences, got none"):
        train(config(**{"data.clips": str(tmp_path / "clips.jsonl")}), tmp_path / "out", device="cpu")


def test_describe_command(run, tmp_path):
    model = make("decoder_prob")
    model.save_pretrained(tmp_path / "model")
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_crf_clips(good, CrfSet(NODES, CLIPS))
    bad.write_text("{}")
    expected = [c[0].text for c in model.describe(CLIPS, max_new_tokens=5)]
    call = ("describe", "--model", tmp_path / "model", "--max-new-tokens", 5)
    status, out, err = run(*call, good)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{clip.id}\t{text}" for clip, text in zip(CLIPS, expected, strict=True)]
    status, out, err = run(*call, bad, good, "--json", "--nbest", 2)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "bad.jsonl line 1: clip_id must be text, got None" in err
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["clip_id"] for r in records] == ["a", "b", "c"]
    assert all(len(r["sentences"]) == 2 for r in records)
    write_crf_clips(bad, CrfSet(NODES, [dataclasses.replace(clip, sentences=()) for clip in CLIPS]))
    status, out, err = run("eval", "--references", bad, "--model", tmp_path / "model")
    assert (status, out) == (1, "")
    assert err == f"lrcn-fast: --references: clips of {bad} must have sentences, got none\n"
    other = CrfSet({"activity": ("cut", "peel")}, [CrfClip("a", ((1.0, 0.0),), ("cut",))])
    write_crf_clips(bad, other)
    status, _, err = run(*call, bad)
    assert (status, "must have the nodes of the model (activity, object), got activity\n" in err) == (1, True)
    for activity, objects, got in (
        (
            ("cut", "saw"),
            NODES["object"],
            "'activity' must be the 2 of the model, in its order, got 'saw' for 'take out'",
        ),
        (NODES["activity"], NODES["object"][:2], "'object' must be the 3 of the model, in its order, got 2"),
    ):
        even = [tuple(1 / len(labels) for _ in labels) for labels in (activity, objects)]
        nodes = {"activity": activity, "object": objects}
        write_crf_clips(bad, CrfSet(nodes, [CrfClip("a", tuple(even), (activity[0], objects[0]))]))
        status, _, err = run(*call, bad)
        assert (status, f"labels of node {got}\n" in err) == (1, True)
    assert run("describe", good, "--model", tmp_path / "model", "--beam", 2, "--nbest", 3)[0] == 2
