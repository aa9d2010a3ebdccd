"""The native decoder against the reference search, on the same weights."""

import itertools
import math

import pytest
import torch

from lrcn_fast import ops_decode
from lrcn_fast.decoding import GenerationConfig
from lrcn_fast.reference_search import search

EOS = 0
BOS = 1
PAD = 0


class Model:
    """A small caption decoder in plain PyTorch, and its packed twin."""

    def __init__(
        self, V=23, E=7, hidden=(9,), F=0, static_layer=None, image_first=False, scale=1.5, seed=0, bias=True
    ):
        generator = torch.Generator().manual_seed(seed * 1009 + V * 31 + sum(hidden))

        def randn(*shape):
            return torch.randn(*shape, generator=generator) * scale

        self.V, self.static_layer, self.image_first = V, static_layer, image_first
        self.F = E if image_first else F
        self.hidden = hidden
        self.embedding = randn(V, E)
        sizes = [E, *hidden]
        self.w_ih, self.w_hh, self.bias = [], [], []
        for layer, H in enumerate(hidden):
            width = sizes[layer] + (F if layer == static_layer else 0)
            self.w_ih.append(randn(4 * H, width) / width**0.5)
            self.w_hh.append(randn(4 * H, H) / H**0.5)
            self.bias.append(randn(4 * H) * 0.3 if bias else None)
        self.projection = randn(V, hidden[-1])
        self.projection_bias = randn(V) if bias else None
        self.generator = generator

    def features(self, B):
        return torch.randn(B, self.F, generator=self.generator) if self.F else None

    def pack(self, dtype=torch.float32, device="cpu", **options):
        return ops_decode.decode_pack(
            self.embedding.to(device),
            [w.to(device) for w in self.w_ih],
            [w.to(device) for w in self.w_hh],
            [None if b is None else b.to(device) for b in self.bias],
            self.projection.to(device),
            None if self.projection_bias is None else self.projection_bias.to(device),
            static_layer=self.static_layer,
            image_first=self.image_first,
            dtype=dtype,
            **options,
        )

    def pack_arguments(self, dtype, table):
        """The arguments of the op itself."""
        bias = [w.new_zeros(len(w)) if b is None else b for b, w in zip(self.bias, self.w_hh, strict=True)]
        weights = (self.embedding, self.w_ih, self.w_hh, bias, self.projection, self.projection_bias)
        layer = -1 if self.static_layer is None else self.static_layer
        return (*weights, layer, self.image_first, dtype, table)

    def taken(self, x):
        """What the weights multiply at every step, of x."""
        return x

    def taken_once(self, features):
        """What the weights multiply once for an image, of its features."""
        return features

    def _layers(self, x, state, features):
        out = []
        for layer, H in enumerate(self.hidden):
            x = self.taken(x) if layer > 0 else x
            if layer == self.static_layer:
                x = torch.cat([x, self.taken_once(features)], 1)
            z = x @ self.w_ih[layer].T.to(x) + self.taken(state[2 * layer]) @ self.w_hh[layer].T.to(x)
            if self.bias[layer] is not None:
                z = z + self.bias[layer].to(x)
            i, f, g, o = z.split(H, 1)
            c = f.sigmoid() * state[2 * layer + 1] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            out += [x, c]
        logits = x @ self.projection.T.to(x)
        if self.projection_bias is not None:
            logits = logits + self.projection_bias.to(x)
        return logits, tuple(out)

    def reference(
        self, B, features, config, *, prefix=None, feed_bos=True, uniforms=None, dtype=torch.float64
    ):
        """The reference search on this model in float64."""
        embedding = self.embedding.to(dtype)
        features = None if features is None else features.to(dtype)
        state = tuple(torch.zeros(B, H, dtype=dtype) for H in self.hidden for _ in range(2))
        static = self.static_layer is not None
        logits = None
        if self.image_first:
            logits, state = self._layers(self.taken_once(features), state, None)
        fed = [] if prefix is None else list(prefix.T)
        for words in ([torch.full((B,), BOS)] if feed_bos else []) + fed:
            logits, state = self._layers(embedding[words], state, features)

        def step(words, state):
            # The features travel in the state, so that they follow their image's rows.
            logits, new = self._layers(embedding[words], state, state[-1] if static else None)
            return logits, (*new, *state[len(new) :])

        state = (*state, features) if static else state
        result = search(logits, state, step, config, eos_id=EOS, pad_id=PAD, prefix=prefix, uniforms=uniforms)
        return result.sequences, result.lengths, result.scores, result.token_logprobs


FAMILIES = {
    "1u": dict(hidden=(9,), F=5, static_layer=0),
    "2u": dict(hidden=(8, 11), F=5, static_layer=0),
    "2f": dict(hidden=(17, 8), F=6, static_layer=1),
    "three-layers-static-middle": dict(hidden=(5, 16, 7), F=3, static_layer=1),
    "image-first": dict(hidden=(9,), image_first=True),
    "image-first-deep": dict(hidden=(6, 9), image_first=True),
    "no-image": dict(hidden=(9, 9)),
    "no-bias": dict(hidden=(9,), F=5, static_layer=0, bias=False),
    "wide-vocabulary": dict(V=600, hidden=(20, 20), F=5, static_layer=1),
}

# Log-probabilities against float64: measured 1.4e-6 over the families and 40 seeds each (V up to 600, sums of
# 8 words up to 60); three times that. A wrong token or a lost term is off by far more.
ATOL = 5e-6


def assert_same(actual, expected, atol=ATOL):
    names = ("sequences", "lengths", "scores", "token_logprobs")
    for name, got, want in zip(names, actual, expected, strict=True):
        if got.dtype == torch.int64:
            assert torch.equal(got, want), f"{name}: {got} against {want}"
        else:
            torch.testing.assert_close(got, want.float(), rtol=1e-6, atol=atol)


def config(**options):
    return GenerationConfig(**options)


def run(model, packed, features, B, *, feed_bos=True, prefix=None, uniforms=None, **options):
    """The native search that ``options``, those of GenerationConfig, ask for, where the pack is."""
    given = (features, prefix, uniforms)
    features, prefix, uniforms = (None if t is None else t.to(packed.device) for t in given)
    settings = config(**options)
    common = dict(
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        batch_size=B,
        feed_bos=feed_bos,
        prefix=prefix,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        repetition_penalty=settings.repetition_penalty,
        suppress_tokens=settings.suppress_tokens,
    )
    if settings.do_sample or settings.num_beams == 1:
        result = ops_decode.decode_sample(
            packed,
            features,
            uniforms,
            logit_scale=settings.logit_scale,
            top_k=settings.top_k,
            top_p=settings.top_p,
            **common,
        )
    else:
        result = ops_decode.decode_beam(
            packed,
            features,
            num_beams=settings.num_beams,
            num_return_sequences=settings.num_return_sequences,
            early_stopping=settings.early_stopping,
            compat=settings.compat,
            **common,
        )
    return tuple(t.cpu() for t in result)


def compare(model, B, *, feed_bos=True, prefix=None, uniforms=None, packed=None, device="cpu", **options):
    features = model.features(B)
    packed = model.pack(device=device) if packed is None else packed
    actual = run(model, packed, features, B, feed_bos=feed_bos, prefix=prefix, uniforms=uniforms, **options)
    expected = model.reference(
        B, features, config(**options), prefix=prefix, feed_bos=feed_bos, uniforms=uniforms
    )
    assert_same(actual, expected)
    return actual


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("table_limit", [0, ops_decode.TABLE_LIMIT], ids=["embedding", "table"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_the_reference_search(family, table_limit, seed, device):
    model = Model(**FAMILIES[family], seed=seed)
    packed = model.pack(table_limit=table_limit, device=device)
    compare(model, 3, packed=packed, num_beams=4, num_return_sequences=4, max_new_tokens=8)
    compare(model, 3, packed=packed, num_beams=1, max_new_tokens=8)
    if model.image_first:
        compare(model, 3, packed=packed, num_beams=4, max_new_tokens=8, feed_bos=False)


RULES = {
    "one-beam-of-many": dict(num_beams=7, num_return_sequences=7),
    "length-penalty": dict(length_penalty=1.0, num_return_sequences=5),
    "negative-length-penalty": dict(length_penalty=-0.7, num_return_sequences=5),
    "stop-when-full": dict(early_stopping=True, num_return_sequences=5, length_penalty=0.8),
    "never-stop-early": dict(early_stopping="never", num_return_sequences=5, length_penalty=1.3),
    "min-new": dict(min_new_tokens=4, num_return_sequences=3),
    "suppress": dict(suppress_tokens=(2, 5, 6, 7, 22), num_return_sequences=3),
    "suppress-eos": dict(suppress_tokens=(EOS,), num_return_sequences=3),
    "no-repeat-1": dict(no_repeat_ngram_size=1, num_return_sequences=3),
    "no-repeat-2": dict(no_repeat_ngram_size=2, num_return_sequences=3),
    "repetition": dict(repetition_penalty=1.7, num_return_sequences=3),
    "repetition-wanted": dict(repetition_penalty=0.6, num_return_sequences=3),
    "everything": dict(
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        suppress_tokens=(3, 9),
        min_new_tokens=3,
        length_penalty=0.9,
        num_return_sequences=5,
    ),
    "caffe": dict(compat="caffe", num_return_sequences=5),
    "caffe-rules": dict(compat="caffe", num_return_sequences=2, no_repeat_ngram_size=2, min_new_tokens=2),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rules", RULES)
def test_every_rule_matches_the_reference_search(rules, seed, device):
    options = {"max_new_tokens": 9, **RULES[rules]}
    model = Model(hidden=(9, 8), F=4, static_layer=1, seed=seed, V=23)
    compare(model, 4, device=device, **options)
    prefix = torch.tensor([[2, 3], [4, 2], [7, 7], [9, 22]])
    compare(model, 4, device=device, prefix=prefix, **options)
    if options.get("compat") != "caffe":
        greedy = {k: v for k, v in options.items() if k not in ("num_beams", "num_return_sequences")}
        compare(model, 4, device=device, num_beams=1, prefix=prefix, **greedy)


SAMPLING = {
    "plain": {},
    "cold": dict(temperature=0.5),
    "hot": dict(temperature=2.0),
    "logits-overflow": dict(temperature=1e-38, top_p=0.9),
    "caffe-temperature": dict(temperature=2.0, compat="caffe"),
    "top-k": dict(top_k=4),
    "top-p": dict(top_p=0.7),
    "top-k-and-p": dict(top_k=6, top_p=0.8, temperature=1.5),
    "rules": dict(repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=3, suppress_tokens=(4, 8)),
    "length-penalty": dict(length_penalty=1.0),
}


@pytest.mark.parametrize("rules", SAMPLING)
def test_sampling_matches_the_reference(rules, device):
    model = Model(V=150, hidden=(9, 8), F=4, static_layer=1, scale=1.0, seed=3)
    uniforms = torch.rand(3, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = dict(do_sample=True, num_return_sequences=12, max_new_tokens=8, **SAMPLING[rules])
    compare(model, 3, uniforms=uniforms, device=device, **options)
    compare(model, 3, uniforms=uniforms, prefix=torch.tensor([[5], [6], [7]]), device=device, **options)


def enumerate_captions(model, features, L):
    """All captions of at most L words with their log-probability, by teacher forcing in float64."""
    captions = {}
    state = tuple(torch.zeros(1, H, dtype=torch.float64) for H in model.hidden for _ in range(2))
    features = features.double()

    def grow(words, state, total, word):
        logits, state = model._layers(model.embedding[[word]].double(), state, features)
        logp = logits.log_softmax(1)[0]
        for v in range(model.V):
            score = total + float(logp[v])
            if v == EOS or len(words) + 1 == L:
                captions[(*words, v)] = score
            else:
                grow((*words, v), state, score, v)

    grow((), state, 0.0, BOS)
    return captions


@pytest.mark.parametrize("compat", ["hf", "caffe"])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_is_exhaustive_search(seed, compat, device):
    V, L = 4, 4
    model = Model(V=V, hidden=(5,), F=3, static_layer=0, seed=seed)
    features = model.features(1)
    captions = sorted(enumerate_captions(model, features, L).items(), key=lambda item: -item[1])
    n = 20
    sequences, lengths, scores, _ = run(
        model,
        model.pack(device=device),
        features,
        1,
        num_beams=V**L,
        num_return_sequences=n,
        max_new_tokens=L,
        compat=compat,
    )
    for rank, (words, score) in enumerate(captions[:n]):
        assert tuple(sequences[0, rank, : lengths[0, rank]].tolist()) == words
        assert math.isclose(float(scores[0, rank]), score, abs_tol=ATOL)


def test_scores_are_the_sum_of_their_words():
    model = Model(hidden=(9,), F=4, static_layer=0)
    _, lengths, scores, logprobs = run(
        model, model.pack(), model.features(3), 3, num_beams=6, num_return_sequences=6, length_penalty=0.7
    )
    torch.testing.assert_close(scores, logprobs.sum(-1) / lengths**0.7)
    assert (scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("compat", ["hf", "caffe"])
def test_result_does_not_depend_on_the_batch(compat, device):
    model = Model(V=200, hidden=(20, 30), F=6, static_layer=1, seed=5)
    packed, B = model.pack(device=device), 70
    features = model.features(B)
    options = dict(num_beams=5, num_return_sequences=3, compat=compat, max_new_tokens=10)
    together = run(model, packed, features, B, **options)
    for rows in ([0], [69], [3, 2, 1], list(range(40, 60))):
        for whole, part in zip(
            together, run(model, packed, features[rows], len(rows), **options), strict=True
        ):
            assert torch.equal(whole[rows], part)
    uniforms = torch.rand(B, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampling = dict(do_sample=True, num_return_sequences=4, max_new_tokens=10)
    together = run(model, packed, features, B, uniforms=uniforms, **sampling)
    for whole, one in zip(
        together, run(model, packed, features[5:6], 1, uniforms=uniforms[5:6], **sampling), strict=True
    ):
        assert torch.equal(whole[5:6], one)


def test_result_does_not_depend_on_the_number_of_threads():
    model = Model(V=1500, hidden=(100, 120), F=6, static_layer=1, seed=6, scale=0.8)
    features, before = model.features(6), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packed = model.pack()
            uniforms = torch.rand(6, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            results.append(
                [
                    *run(model, packed, features, 6, num_beams=5, num_return_sequences=5, max_new_tokens=12),
                    *run(
                        model,
                        packed,
                        features,
                        6,
                        uniforms=uniforms,
                        do_sample=True,
                        num_return_sequences=3,
                        max_new_tokens=12,
                    ),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_ties_go_to_the_lower_parent_then_the_lower_token(device):
    model = Model(V=6, hidden=(3,), bias=True)
    model.projection.zero_()
    model.projection_bias.copy_(torch.tensor([-9.0, 1.0, 2.0, 1.0, 2.0, 2.0]))
    sequences, _, _, _ = run(
        model, model.pack(device=device), None, 1, num_beams=4, num_return_sequences=4, max_new_tokens=2
    )
    assert sequences[0].tolist() == [[2, 2], [2, 4], [2, 5], [4, 2]]


@pytest.mark.parametrize("compat", ["hf", "caffe"])
@pytest.mark.parametrize("K", [5, 40, 1024])
def test_more_beams_than_words(K, compat, device):
    model = Model(V=3, hidden=(4,), F=2, static_layer=0, seed=1)
    sequences, lengths, scores, logprobs = compare(
        model, 2, num_beams=K, num_return_sequences=min(K, 20), max_new_tokens=3, compat=compat, device=device
    )
    if K >= 40:  # 1 + 2 + 4 * 3 captions exist
        assert (lengths > 0).sum(1).tolist() == [15, 15]
        assert torch.equal(scores == -torch.inf, lengths == 0)
        assert (sequences[:, 15:] == PAD).all()
        assert (logprobs[:, 15:] == 0).all()
    for found in (sequences[b][lengths[b] > 0].tolist() for b in range(2)):
        assert len({tuple(words) for words in found}) == len(found)


def test_nothing_ends(device):
    model = Model(hidden=(5,), F=2, static_layer=0)
    model.projection_bias[EOS] = -1e4
    _, lengths, _, _ = compare(model, 2, num_beams=3, num_return_sequences=3, max_new_tokens=5, device=device)
    assert (lengths == 5).all()


@pytest.mark.parametrize(
    "options", [dict(), dict(compat="caffe"), dict(num_beams=1)], ids=["hf", "caffe", "greedy"]
)
def test_a_caption_without_an_allowed_word_stops_unfinished(options, device):
    model = Model(V=4, hidden=(5,), F=2, static_layer=0)
    rules = dict(no_repeat_ngram_size=1, suppress_tokens=(EOS,), max_new_tokens=6, **options)
    _, lengths, scores, _ = compare(model, 2, device=device, **rules)
    assert (lengths == 3).all()
    assert scores.isfinite().all()


def test_no_rows(device):
    model = Model(hidden=(5,), F=2, static_layer=0)
    sequences, lengths, _, _ = run(
        model, model.pack(device=device), torch.empty(0, 2), 0, num_beams=3, max_new_tokens=4
    )
    assert sequences.shape == (0, 1, 4)
    assert lengths.shape == (0, 1)


@pytest.mark.parametrize(
    ("dtype", "device"),
    [
        (torch.bfloat16, "cpu"),
        (torch.int8, "cpu"),
        pytest.param(torch.bfloat16, "cuda", marks=pytest.mark.needs_cuda),
        pytest.param(torch.float16, "cuda", marks=pytest.mark.needs_cuda),
    ],
)
def test_reduced_weights_stay_close(dtype, device):
    model = Model(V=90, hidden=(33, 40), F=6, static_layer=1, scale=0.5)
    features, packed = model.features(4), model.pack(dtype, device, table_limit=0)
    _, _, _, logprobs = run(model, packed, features, 4, num_beams=1, max_new_tokens=1)
    _, _, _, expected = model.reference(4, features, config(num_beams=1, max_new_tokens=1))
    # Rounding a weight: 2^-9 relative (bfloat16), 1/254 of the row's largest (int8); measured 0.007 and 0.02.
    torch.testing.assert_close(logprobs, expected.float(), rtol=0, atol=0.05)


def test_packed_weights_are_read_from_the_tensor():
    model = Model(hidden=(5,), F=2, static_layer=0)
    packed, features = model.pack(), model.features(2)
    model.projection.zero_()
    before = run(model, packed, features, 2)
    assert torch.equal(before[0], run(model, packed.clone(), features, 2)[0])


def test_search_compiles():
    model = Model(hidden=(5,), F=2, static_layer=0)
    packed, features = model.pack(), model.features(2)

    @torch.compile(fullgraph=True, backend="eager")
    def caption(features):
        return ops_decode.decode_beam(packed, features * 1.0, bos_id=BOS, eos_id=EOS, pad_id=PAD)

    assert torch.equal(caption(features)[0], run(model, packed, features, 2)[0])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_beams=1025), r"num_beams must be in 1..1024, got 1025"),
        (dict(num_beams=0), r"num_beams must be in 1..1024, got 0"),
        (dict(num_return_sequences=6), r"num_return_sequences must be in 1..num_beams = 5, got 6"),
        (dict(max_new_tokens=0), r"max_new_tokens must be at least 1, got 0"),
        (dict(min_new_tokens=21), r"min_new_tokens must be in 0..max_new_tokens = 20, got 21"),
        (dict(no_repeat_ngram_size=-1), r"no_repeat_ngram_size must be at least 0, got -1"),
        (dict(repetition_penalty=0.0), r"repetition_penalty must be a finite number above 0, got 0"),
        (dict(length_penalty=NAN), r"length_penalty must keep length\*\*length_penalty a float32 number"),
        (dict(length_penalty=100.0), r"length_penalty must keep length\*\*length_penalty a float32 number"),
        (dict(early_stopping="soon"), r'early_stopping must be True, False or "never", got \'soon\''),
        (dict(suppress_tokens=[2, 23]), r"suppress_tokens must be token ids in 0..22, got 23"),
        (
            dict(suppress_tokens=range(23)),
            r"suppress_tokens must leave a word to start with, but all 23 tokens",
        ),
        (
            dict(suppress_tokens=range(1, 23), min_new_tokens=1),
            r"all 23 tokens are banned \(min_new_tokens bans the end",
        ),
        (dict(prefix=torch.tensor([[3], [23]])), r"prefix_ids must be in 0..22, got 23"),
        (dict(prefix=torch.tensor([[3]])), r"prefix_ids must be \[B, P\] = \[2, 1\], got \[1, 1\]"),
        (dict(prefix=torch.tensor([[3.0], [3.0]])), r"prefix_ids must be int64, got Float"),
        (dict(bos_id=23), r"bos_id must be in 0..22, got 23"),
        (dict(eos_id=-1), r"eos_id must be in 0..22, got -1"),
        (dict(feed_bos=False), r"feed_bos must be True without image_first"),
        (dict(batch_size=3), r"batch_size must be the rows of features = 2, got 3"),
        (dict(features=torch.zeros(2, 4)), r"features must be \[B, F\] = \[2, 3\], got \[2, 4\]"),
        (dict(features=torch.zeros(2, 3).double()), r"features must be float32, got Double"),
        (dict(features=torch.tensor([[0, 0, 0], [0, NAN, 0]])), r"features must be finite, got nan in row 1"),
        (
            dict(features=torch.tensor([[0, -INF, 0], [0, 0, 0]])),
            r"features must be finite, got -inf in row 0",
        ),
        (dict(features=None, batch_size=2), r"features must be given to a decoder with an image"),
        (dict(packed=torch.zeros(9, dtype=torch.uint8)), r"packed must come from decode_pack, got 9 bytes"),
        (
            dict(packed=torch.zeros(9999, dtype=torch.uint8)),
            r"packed must come from decode_pack of this version",
        ),
        (dict(packed=torch.zeros(9999)), r"packed must come from decode_pack, got Float"),
    ],
)
def test_errors_name_the_argument(options, message, device):
    model = Model(hidden=(5,), F=3, static_layer=0)
    arguments = dict(packed=model.pack(device=device), features=torch.zeros(2, 3))
    arguments |= {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, **options}
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    if device == "cuda":  # which value it was, only the CPU tells
        message = message.split(", got nan in")[0].split(", got -inf in")[0]
        message = message.replace("prefix_ids must be in 0..22, got 23", "prefix_ids must be in 0..22, got 1")
        message = message.replace("decode_pack of this version", "decode_pack of this version on CUDA")
        message = message.replace("from decode_pack, got", "from decode_pack on CUDA, got")
        message = message.replace("got 9 bytes", r"got Byte \[9\]")
    with pytest.raises(ValueError, match=message):
        ops_decode.decode_beam(**arguments)


def test_unknown_compat():
    model = Model(hidden=(5,), F=3, static_layer=0)
    with pytest.raises(NotImplementedError, match="compat must be hf or caffe, got 'fairseq'"):
        ops_decode.decode_beam(
            model.pack(), torch.zeros(1, 3), bos_id=1, eos_id=0, pad_id=0, compat="fairseq"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(uniforms=torch.rand(2, 3, 20)), r"uniforms must be float64, got Float"),
        (
            dict(uniforms=torch.rand(2, 3, 9).double()),
            r"uniforms must be \[B, n, max_new\] = \[2, 3, 20\], got",
        ),
        (dict(top_k=-1), r"top_k must be at least 0, got -1"),
        (dict(top_p=0.0), r"top_p must be above 0 and at most 1, got 0"),
        (dict(logit_scale=0.0), r"temperature must be a finite number above 0"),
        (dict(features=torch.full((2, 3), NAN)), r"features must be finite, got nan in row 0"),
    ],
)
def test_errors_of_sampling(options, message):
    model = Model(hidden=(5,), F=3, static_layer=0)
    uniforms = torch.rand(2, 3, 20, dtype=torch.float64)
    arguments = dict(
        packed=model.pack(), features=torch.zeros(2, 3), uniforms=uniforms, bos_id=BOS, eos_id=EOS, pad_id=PAD
    )
    with pytest.raises(ValueError, match=message):
        ops_decode.decode_sample(**{**arguments, **options})


def test_weights_that_are_not_finite_are_an_error(device):
    model = Model(hidden=(5,), F=3, static_layer=0)
    model.projection[7, 2] = NAN
    with pytest.raises(ValueError, match="the model's scores must be finite, got NaN or infinity"):
        run(model, model.pack(device=device), torch.zeros(1, 3), 1)


def test_a_word_of_probability_0_is_never_chosen(device):
    model = Model(hidden=(5,), F=3, static_layer=0)
    model.projection_bias[4:] = -INF
    sequences, _, _, _ = compare(
        model, 2, num_beams=4, num_return_sequences=4, max_new_tokens=4, device=device
    )
    assert sequences.max() < 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w_ih", [torch.zeros(20, 9)], r"w_ih must be \[4H, input\] = \[20, 7\], got \[20, 9\]"),
        ("w_hh", [torch.zeros(21, 5)], r"w_hh must be \[4H, H\] = \[20, 5\], got \[21, 5\]"),
        ("bias", [torch.zeros(19)], r"bias must be \[4H\] = \[20\], got \[19\]"),
        ("bias", [], r"w_ih, w_hh and bias must hold one tensor per layer, got 1, 1 and 0"),
        ("projection", torch.zeros(23, 6), r"projection must be \[V, H\] = \[23, 5\], got \[23, 6\]"),
        ("projection_bias", torch.zeros(22), r"projection_bias must be \[V\] = \[23\], got \[22\]"),
        ("embedding", torch.zeros(23, 7).double(), r"embedding must be float32, got Double"),
        ("static_layer", 1, r"static_layer must be in -1..0, got 1"),
        ("static_layer", 0, r"w_ih\[0\] must be \[4H, input \+ F\] with F at least 1, got F = 0"),
        ("dtype", torch.float16, r"dtype must be float32, bfloat16 or int8, got Half"),
    ],
)
def test_errors_of_packing(name, value, message):
    model = Model(hidden=(5,))
    arguments = dict(
        embedding=model.embedding,
        w_ih=model.w_ih,
        w_hh=model.w_hh,
        bias=model.bias,
        projection=model.projection,
        projection_bias=model.projection_bias,
    )
    with pytest.raises(ValueError, match=message):
        ops_decode.decode_pack(**{**arguments, name: value})


def test_image_enters_once():
    model = Model(hidden=(5,), F=3, static_layer=0)
    model.image_first = True
    with pytest.raises(ValueError, match="image_first must be False with a static_layer"):
        model.pack()


def test_all_combinations_of_stopping_agree_with_the_reference(device):
    # Where the exact early exit could go wrong: every stopping rule with every sign of the penalty.
    model = Model(V=11, hidden=(6,), F=3, static_layer=0, seed=9, scale=2.0)
    for early, penalty, n in itertools.product((False, True, "never"), (-1.5, 0.0, 0.5, 2.0), (1, 4)):
        compare(
            model,
            5,
            num_beams=4,
            num_return_sequences=n,
            early_stopping=early,
            length_penalty=penalty,
            max_new_tokens=12,
            device=device,
        )


def test_early_stopping_never_finds_what_the_heuristic_misses():
    # Ends are likely and length is rewarded: the pool fills early, and long captions beat it later.
    differ = 0
    for seed in range(6):
        model = Model(V=11, hidden=(6,), F=3, static_layer=0, seed=seed, scale=1.0)
        model.projection_bias[EOS] += 2.0
        features = model.features(5)
        results = []
        for early in (False, "never"):
            options = dict(
                num_beams=3,
                num_return_sequences=3,
                early_stopping=early,
                length_penalty=2.0,
                max_new_tokens=12,
            )
            results.append(run(model, model.pack(), features, 5, **options))
            assert_same(results[-1], model.reference(5, features, config(**options)))
        assert (results[1][2] >= results[0][2]).all()
        differ += not torch.equal(results[0][0], results[1][0])
    assert differ > 0
