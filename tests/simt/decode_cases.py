"""Whole searches through the decoding kernels, against the plain PyTorch search in float64.

Sampling is compared with the native decoder of the CPU: same logits, same numbers, so the same words.
"""

import ctypes
import dataclasses
import functools

import numpy as np
import torch
from cases import CODE, aligned

from lrcn_fast import ops_decode
from lrcn_fast._packed_sizes import _CUDA_DECODER_HEADER_BYTES, cuda_decoder_bytes
from lrcn_fast.decoding import GenerationConfig
from lrcn_fast.reference_search import search

EOS, BOS, PAD = 0, 1, -7
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STOP = {False: 0, True: 1, "never": 2}
RULES = (
    "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size", "repetition_penalty",
    "suppress_tokens", "top_k", "top_p",
)  # fmt: skip

# Log-probabilities against float64, sums up to 16. Worst of all cases of
# test_decode_kernels.py: 1.9e-6.
ATOL = 8e-6


@dataclasses.dataclass(frozen=True)
class Decode:
    """A decoder and one call of it. Options are those of GenerationConfig, as a tuple of pairs."""

    name: str
    images: int = 3
    V: int = 23
    E: int = 7
    hidden: tuple = (9, 8)
    F: int = 5
    static_layer: int | None = 1
    image_first: bool = False
    table: bool = False
    feed_bos: bool = True
    prefix: int = 0  # words
    dtype: str = "float32"
    twins: bool = False  # word v + V / 2 is a copy of word v
    nearly: float = 0.0  # added to the logits of the upper half: sums round to equal, logits do not
    dead: tuple = ()  # words of probability 0
    bias: bool = True  # of the projection
    shift: float = 0.0  # added to all logits
    eos: float = 3.0  # added to the logit of the end of sentence, so that captions end
    scale: float = 1.5
    portion: int = 8  # rows that sampling keeps logits of
    options: tuple = ()

    def __str__(self):
        return self.name

    @property
    def config(self):
        return GenerationConfig(**{"max_new_tokens": 5, "num_beams": 3, **dict(self.options)})

    @property
    def greedy(self):
        return self.config.num_beams == 1 and not self.samples

    @property
    def samples(self):
        return self.config.do_sample

    @property
    def beams(self):
        return self.config.num_return_sequences if self.samples else self.config.num_beams

    @property
    def features(self):
        return self.E if self.image_first else 0 if self.static_layer is None else self.F

    def weights(self):
        """Float32 tensors, deterministic."""
        rng = np.random.default_rng([self.V, self.E, *self.hidden, self.features, self.images])

        def normal(*shape, scale=self.scale):
            return torch.tensor(rng.standard_normal(shape) * scale, dtype=torch.float32)

        sizes = [self.E, *self.hidden]
        w = {"embedding": normal(self.V, self.E), "w_ih": [], "w_hh": [], "bias": []}
        for layer, H in enumerate(self.hidden):
            width = sizes[layer] + (self.F if layer == self.static_layer else 0)
            w["w_ih"].append(normal(4 * H, width) / width**0.5)
            w["w_hh"].append(normal(4 * H, H) / H**0.5)
            w["bias"].append(normal(4 * H, scale=0.3))
        w["projection"], w["projection_bias"] = normal(self.V, self.hidden[-1]), normal(self.V)
        if self.twins:
            for name in ("embedding", "projection", "projection_bias"):
                w[name][self.V // 2 :] = w[name][: self.V - self.V // 2]
        w["projection_bias"][self.V // 2 :] += self.nearly
        w["projection_bias"] += self.shift
        w["projection_bias"][EOS] += self.eos
        w["projection_bias"][list(self.dead)] = -torch.inf
        w["projection_bias"] = w["projection_bias"] if self.bias else None
        features = normal(self.images, self.features, scale=1.0) if self.features else None
        prefix = torch.tensor(rng.integers(1, self.V, (self.images, self.prefix)))
        return w, features, prefix

    def uniforms(self):
        """What sampling consumes; among them both ends of the range, and a half, which lies on a border."""
        rng = np.random.default_rng([self.V, self.images])
        numbers = rng.random((self.images, self.beams, self.config.max_new_tokens))
        numbers[:, 0, 0], numbers[:, 0, -1], numbers[:, -1, -1] = 0.5, 0.0, np.nextafter(1.0, 0.0)
        return torch.tensor(numbers)

    def sampled(self):
        """What the decoder of the CPU draws, in float32 from weights that are rounded as here."""
        w, features, prefix = self.weights()

        def rounded(t):
            return t.to(TORCH[self.dtype]).float()

        packed = ops_decode.decode_pack(
            w["embedding"], [rounded(t) for t in w["w_ih"]], [rounded(t) for t in w["w_hh"]], w["bias"],
            rounded(w["projection"]), w["projection_bias"], static_layer=self.static_layer,
            image_first=self.image_first,
        )  # fmt: skip
        c = self.config
        rules = {name: getattr(c, name) for name in RULES}
        results = ops_decode.decode_sample(
            packed, features, self.uniforms(), bos_id=BOS, eos_id=EOS, pad_id=PAD, batch_size=self.images,
            feed_bos=self.feed_bos, prefix=prefix, logit_scale=c.logit_scale, **rules,
        )  # fmt: skip
        return [t.numpy() for t in results]

    def expected(self):
        if self.samples:
            return self.sampled()
        w, features, prefix = self.weights()
        narrow = {k: [t.to(TORCH[self.dtype]) for t in v] for k, v in w.items() if k in ("w_ih", "w_hh")}
        narrow = {k: [t.double() for t in v] for k, v in narrow.items()}
        projection = w["projection"].to(TORCH[self.dtype]).double()
        if self.features:
            features = features.double()

        def layers(x, state, image):
            out = []
            for layer in range(len(self.hidden)):
                if layer == self.static_layer:
                    x = torch.cat([x, image], 1)
                z = x @ narrow["w_ih"][layer].T + state[2 * layer] @ narrow["w_hh"][layer].T
                i, f, g, o = (z + w["bias"][layer].double()).chunk(4, 1)
                c = f.sigmoid() * state[2 * layer + 1] + i.sigmoid() * g.tanh()
                x = o.sigmoid() * c.tanh()
                out += [x, c]
            logits = x @ projection.T + (w["projection_bias"].double() if self.bias else 0.0)
            return logits, (*out, *state[len(out) :])

        B = self.images
        state = tuple(torch.zeros(B, H, dtype=torch.float64) for H in self.hidden for _ in range(2))
        state = (*state, features) if self.static_layer is not None else state
        embedding = w["embedding"].double()

        def step(words, state):
            return layers(embedding[words], state, state[-1] if self.static_layer is not None else None)

        logits = None
        if self.image_first:
            logits, state = layers(features, state, None)
        for words in [torch.full((B,), BOS)] * self.feed_bos + list(prefix.T):
            logits, state = step(words, state)
        prefix = prefix if self.prefix else None
        result = search(logits, state, step, self.config, eos_id=EOS, pad_id=PAD, prefix=prefix)
        return [t.numpy() for t in (result.sequences, result.lengths, result.scores, result.token_logprobs)]


def host_sizes(case, images=None):
    """What bindings.cpp calls `sizes`."""
    c = case.config
    images = case.images if images is None else images
    penalty, factor = (int(np.float32(x).view(np.uint32)) for x in (c.repetition_penalty, c.logit_scale))
    hidden = [*case.hidden, 0, 0][:3]
    static = -1 if case.static_layer is None else case.static_layer
    in_slot = case.greedy or case.samples or c.compat == "caffe"
    shape = [case.V, case.E, len(case.hidden), *hidden, static, case.F if static >= 0 else 0]
    shape += [case.image_first, case.table, CODE[case.dtype]]
    task = [images, case.beams, c.num_return_sequences, case.prefix, c.max_new_tokens, c.min_new_tokens]
    task += [c.no_repeat_ngram_size, BOS, EOS, PAD, case.feed_bos, in_slot, case.greedy, case.samples]
    task += [STOP[c.early_stopping], penalty, c.length_penalty > 0, factor, c.top_k]
    task += [int(np.float64(c.top_p).view(np.int64)), case.portion]
    return np.array([*shape, *task], np.int64)


def shown(case):
    """What the summary of a test run says of a case."""
    found = {"images": case.images, "beams": case.beams, "V": case.V, "E": case.E}
    return found | {"layers": len(case.hidden), "dtype": CODE[case.dtype], "samples": int(case.samples)}


def _bytes(library, sizes, which):
    function = library._dll.decode_bytes
    function.restype = ctypes.c_int64
    return function(ctypes.c_void_p(sizes.ctypes.data), ctypes.c_int64(which))


def packed_bytes(library, case):
    """What csrc and what tracing take for the size of a packed decoder."""
    static = -1 if case.static_layer is None else case.static_layer
    F = case.F if static >= 0 else 0
    dtype = TORCH[case.dtype]
    traced = cuda_decoder_bytes(case.V, case.E, case.hidden, F, static, case.image_first, dtype, case.table)
    return _bytes(library, host_sizes(case), 3), traced - _CUDA_DECODER_HEADER_BYTES


def numpy(tensor):
    return None if tensor is None else np.ascontiguousarray(tensor.numpy())


def pack(library, case, w, **schedule):
    sizes = host_sizes(case)
    packed, scratch = (aligned((max(_bytes(library, sizes, i), 1),), np.uint8) for i in (0, 1))
    packed[:] = 0xFF  # NaN
    layers = {
        f"{name}{layer}": numpy(w[name][layer]) if layer < len(case.hidden) else None
        for name in ("w_ih", "w_hh", "bias")
        for layer in range(3)
    }
    heads = {name: numpy(w[name]) for name in ("embedding", "projection", "projection_bias")}
    sizes_shown = {name: size for name, size in shown(case).items() if name in ("V", "E", "layers", "dtype")}
    library.call("decode_pack", sizes=sizes.ctypes.data, **heads, **layers, packed=packed, scratch=scratch,
                 shown=sizes_shown, **schedule)  # fmt: skip
    return packed


def searches(case, images=None):
    """What `finished` counts to: the images there is room for, or their captions."""
    images = case.images if images is None else images
    room = 1 << (images - 1).bit_length() if images else 0
    return room * case.beams if case.samples else room


def segments(case):
    """What a search launches after its first word."""
    return -(-(case.config.max_new_tokens - 1) // 4)


def run(library, case, packed, features, prefix, rows=None, more=(), count=None, **schedule):
    """The search over some of the images, and then over `more` of them with the same graph.

    Returns the results of both, and the counters that the host reads after the last.
    """
    rows = list(range(case.images)) if rows is None else rows
    images, more_images = len(rows), len(more)
    c, sizes = case.config, host_sizes(case, max(images, more_images))
    rows = [*rows, *more]
    workspace = aligned((max(_bytes(library, sizes, 2), 1),), np.uint8)
    longest, B, n = case.prefix + c.max_new_tokens, len(rows), c.num_return_sequences
    in_slot_beam = not (case.greedy or case.samples) and c.compat == "caffe"
    norms = np.array([1.0 if in_slot_beam or i == 0 else i**c.length_penalty for i in range(longest + 1)],
                     np.float32)  # fmt: skip
    banned = np.zeros((2, (case.V + 31) // 32), np.uint32)
    for half in range(2):
        for word in {*c.suppress_tokens, *([EOS] if half == 0 else [])}:
            banned[half, word // 32] |= np.uint32(1 << word % 32)
    out = {
        "sequences": np.full((B, n, longest), -99, np.int64),
        "lengths": np.full((B, n), -99, np.int64),
        "scores": np.full((B, n), np.nan, np.float32),
        "logprobs": np.full((B, n, longest), np.nan, np.float32),
    }
    given = {
        "features": None if features is None else numpy(features[rows]),
        "prefix": numpy(prefix[rows]) if case.prefix else None,
        "norms": norms,
        "banned": banned,
        "uniforms": numpy(case.uniforms()[rows]) if case.samples else None,
    }
    library.call("decode", sizes=sizes.ctypes.data, packed=packed, **given, workspace=workspace, **out,
                 segments=segments(case) if count is None else count, images=images, more_images=more_images,
                 shown=shown(case), **schedule)  # fmt: skip
    names = ("finished", "not_finite", "no_word", "bad_feature", "bad_prefix")
    return list(out.values()), dict(zip(names, workspace[:20].view(np.uint32).tolist(), strict=True))


@functools.cache
def prepared(case):
    return case.weights(), case.expected()


def packed_of(library, case, **schedule):
    """Packed once a library: packing has a test of its own."""
    packs = library.__dict__.setdefault("decode_packs", {})
    if case not in packs:
        packs[case] = pack(library, case, case.weights()[0], **schedule)
    return packs[case]


def compare(case, actual, expected):
    sequences, lengths, scores, logprobs = actual
    np.testing.assert_array_equal(sequences, expected[0], err_msg=f"{case}: words")
    np.testing.assert_array_equal(lengths, expected[1], err_msg=f"{case}: lengths")
    np.testing.assert_allclose(scores, expected[2], rtol=1e-6, atol=ATOL, err_msg=f"{case}: scores")
    np.testing.assert_allclose(logprobs, expected[3], rtol=1e-6, atol=ATOL, err_msg=f"{case}: log p")


def check_decode(library, case, *, fresh=False, **schedule):
    """One search on one schedule: results as the reference's, every image done, no complaint."""
    (w, features, prefix), expected = prepared(case)
    packed = pack(library, case, w, **schedule) if fresh else packed_of(library, case, **schedule)
    actual, progress = run(library, case, packed, features, prefix, **schedule)
    compare(case, actual, expected)
    assert progress == {"finished": searches(case), "not_finite": 0, "no_word": 0, "bad_feature": 0,
                        "bad_prefix": 0}  # fmt: skip
    return actual


def check_alone(library, case, **schedule):
    """An image's result does not depend on its batch, bit for bit."""
    (_, features, prefix), _ = prepared(case)
    packed = packed_of(library, case, **schedule)
    whole, _ = run(library, case, packed, features, prefix, **schedule)
    rows = [case.images - 1]
    part, _ = run(library, case, packed, features, prefix, rows=rows, **schedule)
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b[rows])


def check_again(library, case, **schedule):
    """One graph, one memory and two searches, of other images and another number of them: bit for bit."""
    (_, features, prefix), expected = prepared(case)
    packed = packed_of(library, case, **schedule)
    whole, _ = run(library, case, packed, features, prefix, **schedule)
    compare(case, whole, expected)
    last = list(range(case.images))[::-1]
    for rows, more in ((last[:-1], last), (last, last[:-1])):
        both, progress = run(library, case, packed, features, prefix, rows=rows, more=more, **schedule)
        for a, b in zip(both, whole, strict=True):
            np.testing.assert_array_equal(a, b[[*rows, *more]])
        assert progress["finished"] == searches(case)


def check_complaints(library, sample=False, **schedule):
    """What the host must hear of: the search still ends, and touches nothing it should not."""
    rules = (("num_beams", 2), ("max_new_tokens", 2), ("do_sample", sample))
    case = Decode("complaints", 2, V=70, prefix=1, hidden=(4,), static_layer=0, options=rules)
    w, features, prefix = case.weights()

    def progress(features=features, prefix=prefix, case=case, **bias):
        for word, value in bias.items():
            w["projection_bias"][int(word[1:])] = value
        counts = run(library, case, pack(library, case, w, **schedule), features, prefix, **schedule)[1]
        assert counts.pop("finished") == searches(case)
        return {name for name, count in counts.items() if count}

    assert progress() == set()
    for value in (np.nan, np.inf, -np.inf):
        broken = features.clone()
        broken[1, 3] = value
        assert "bad_feature" in progress(features=broken)
    for value in (-1, case.V, 2**40):
        broken = prefix.clone()
        broken[1, 0] = value
        assert progress(prefix=broken) == {"bad_prefix"}
    assert progress(_68=np.nan, _69=np.nan) == {"not_finite"}
    assert progress(_68=np.inf, _69=0.0) == {"not_finite"}
    w["projection_bias"][:] = -np.inf
    assert progress(_68=-np.inf) == {"not_finite"}
    # One word is left, and it is banned. With a prefix a hypothesis without words is the prefix.
    rules = (*rules, ("suppress_tokens", (5,)))
    assert progress(_5=0.0, case=dataclasses.replace(case, options=rules)) == set()
    assert progress(prefix=None, case=dataclasses.replace(case, options=rules, prefix=0)) == {"no_word"}
