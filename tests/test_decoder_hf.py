"""The same model under Hugging Face's generate and under ours: the same captions, the same scores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub

import pytest
import torch
from torch import nn

from lrcn_fast import CaptionDecoder, reference

transformers = pytest.importorskip("transformers", reason="needs pip install 'lrcn_fast[dev]'")

V, E, H, FEATURES, B = 13, 6, 8, 5, 4
EOS, PAD, BOS = 0, V - 2, V - 1
# Hugging Face counts begin of sentence in the rules on repeats and we do not; banned, it makes no difference.
NEVER = (PAD, BOS)


class Wrapped(transformers.PreTrainedModel, transformers.GenerationMixin):
    """A CaptionDecoder as a Hugging Face model that recomputes the whole sentence for every word."""

    config_class = transformers.PretrainedConfig

    def __init__(self, decoder: CaptionDecoder):
        super().__init__(transformers.PretrainedConfig(vocab_size=V, is_encoder_decoder=False))
        self.decoder = decoder
        self.generation_config = transformers.GenerationConfig(
            bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, use_cache=False
        )

    def prepare_inputs_for_generation(self, input_ids, features=None, **_):
        return {"input_ids": input_ids, "features": features}

    def forward(self, input_ids, features=None, return_dict=True):
        tokens = torch.cat([input_ids[:, 1:], input_ids.new_zeros(input_ids.shape[0], 1)], 1)
        return transformers.modeling_outputs.CausalLMOutput(logits=self.decoder(tokens, features))


def make(seed, scale=1.0):
    torch.manual_seed(seed)
    decoder = CaptionDecoder(
        nn.Embedding(V, E),
        [nn.LSTM(E, H), nn.LSTM(H + FEATURES, H)],
        nn.Linear(H, V),
        static_layer=1,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
    ).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=scale)
    return decoder, torch.randn(B, FEATURES)


def hugging_face(decoder, features, **options):
    with torch.no_grad():
        return Wrapped(decoder).generate(
            torch.full((B, 1), BOS),
            features=features,
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
            **options,
        )


BEAMS = {
    "plain": {},
    "one-best": {"num_return_sequences": 1},
    "two-beams": {"num_beams": 2, "num_return_sequences": 2},
    "wide": {"num_beams": 11, "num_return_sequences": 11},
    "penalty-0": {"length_penalty": 0.0},
    "penalty-2": {"length_penalty": 2.0},
    "penalty-negative": {"length_penalty": -1.0},
    "stop-early": {"early_stopping": True},
    "stop-early-penalty-2": {"early_stopping": True, "length_penalty": 2.0},
    "never": {"early_stopping": "never"},
    "never-penalty-0": {"early_stopping": "never", "length_penalty": 0.0},
    "never-penalty-negative": {"early_stopping": "never", "length_penalty": -0.5},
    "ngram-1": {"no_repeat_ngram_size": 1, "max_new_tokens": 8},
    "ngram-2": {"no_repeat_ngram_size": 2},
    "ngram-3": {"no_repeat_ngram_size": 3},
    "repetition-up": {"repetition_penalty": 1.7},
    "repetition-down": {"repetition_penalty": 0.6},
    "min": {"min_new_tokens": 5},
    "min-is-max": {"min_new_tokens": 10},
    "suppress": {"suppress_tokens": [3, 5, *NEVER]},
    "one-word": {"max_new_tokens": 1},
    "all": {
        "length_penalty": 0.7,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "min_new_tokens": 3,
        "suppress_tokens": [4, *NEVER],
        "early_stopping": True,
    },
}


def both(decoder, features, options):
    ours = decoder.generate(features, **options)
    plain = reference.generate(decoder, features, **options)
    return (
        ours,
        plain,
        hugging_face(decoder, features, **{**options, "suppress_tokens": list(options["suppress_tokens"])}),
    )


def assert_same_words(ours, sequences, n):
    sequences = sequences[:, 1:].view(B, n, -1)  # without BOS
    for image in range(B):
        for rank in range(n):
            words = sequences[image, rank].tolist()
            length = (
                words.index(EOS) + 1
                if EOS in words
                else next((t for t, word in enumerate(words) if word == PAD), len(words))
            )
            assert ours.tokens(image, rank) == words[:length]


@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
def test_beam_search(options):
    options = {
        "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "length_penalty": 1.0,
        "suppress_tokens": NEVER, **options,
    }  # fmt: skip
    if options["num_return_sequences"] > options["num_beams"]:
        options["num_return_sequences"] = options["num_beams"]
    ended = 0
    for seed in range(9):
        decoder, features = make(seed, scale=(0.5, 1.0, 2.0)[seed % 3])
        ours, plain, theirs = both(decoder, features, options)
        n = options["num_return_sequences"]
        for result in (ours, plain):
            assert_same_words(result, theirs.sequences, n)
            torch.testing.assert_close(
                result.scores, theirs.sequences_scores.view(B, n), rtol=2e-5, atol=2e-5
            )
        ended += int((ours.lengths < 10).sum())
    assert ended > 0 or options["max_new_tokens"] == 1 or options["min_new_tokens"] == 10


GREEDY = {
    "plain": {},
    "ngram-2": {"no_repeat_ngram_size": 2},
    "repetition": {"repetition_penalty": 1.7},
    "min": {"min_new_tokens": 6},
    "all": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.7, "min_new_tokens": 3},
}


@pytest.mark.parametrize("options", GREEDY.values(), ids=GREEDY)
def test_greedy(options):
    options = {"num_beams": 1, "max_new_tokens": 10, "suppress_tokens": NEVER, **options}
    for seed in range(9):
        decoder, features = make(seed, scale=(0.5, 1.0, 2.0)[seed % 3])
        ours, plain, theirs = both(decoder, features, options)
        assert_same_words(ours, theirs.sequences, 1)
        assert_same_words(plain, theirs.sequences, 1)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 1.8, "top_k": 6, "top_p": 0.8}],
    ids=str,
)
def test_sampling_draws_from_the_same_distribution(options):
    decoder, features = make(3)
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    processors = Wrapped(decoder)._get_logits_processor(config, 1, device="cpu")
    logits = decoder(torch.zeros(B, 1, dtype=torch.int64), features)[:, 0]
    expected = processors(torch.full((B, 1), BOS), logits).softmax(-1)
    n = 10_000
    result = decoder.generate(features, do_sample=True, num_return_sequences=n, max_new_tokens=1, **options)
    for image in range(B):
        counts = result.sequences[image].flatten().bincount(minlength=V) / n
        # 5 standard deviations of a binomial share; what is cut off never appears
        assert ((counts - expected[image]).abs() <= 5 * (expected[image] / n).sqrt()).all()
