"""The decoding kernels on the CPU: the words of the plain search, on every schedule."""
# ruff: noqa: E501  (a case is kept on a line or two)

import dataclasses

import decode_cases
import pytest
from decode_cases import Decode
from decode_mutations import DECODE_MUTATIONS
from simt import CUDA, Library, Mutation, killed, schedules

SEEDS = 20


def options(**given):
    return tuple(given.items())


def sampling(draws, **given):
    return options(do_sample=True, num_return_sequences=draws, **given)


CASES = [
    Decode("plain", options=options(num_beams=4, num_return_sequences=4)),
    Decode("greedy", 3, hidden=(9,), static_layer=0, options=options(num_beams=1)),
    Decode("rules", 2, V=70, prefix=2, eos=12.0, options=options(
        repetition_penalty=1.3, no_repeat_ngram_size=2, suppress_tokens=(3, 9, *range(20, 50)), min_new_tokens=3, length_penalty=0.9,
        num_return_sequences=3)),
    Decode("greedy-rules", 2, prefix=2, scale=2.5, eos=12.0, options=options(
        num_beams=1, repetition_penalty=1.8, no_repeat_ngram_size=2, min_new_tokens=2, length_penalty=0.5)),
    Decode("greedy-repetition", 2, prefix=2, scale=2.5, options=options(
        num_beams=1, repetition_penalty=1.8, max_new_tokens=6)),
    Decode("wanted-repetition", 2, prefix=2, shift=-20.0, options=options(
        repetition_penalty=0.6, num_return_sequences=3, max_new_tokens=6)),
    Decode("caffe", options=options(compat="caffe", num_return_sequences=3, no_repeat_ngram_size=2)),
    Decode("image-first-table", 2, static_layer=None, image_first=True, table=True, options=options(num_beams=2)),
    Decode("image-only", 2, static_layer=None, image_first=True, feed_bos=False, options=options(num_beams=2)),
    Decode("static-table", 2, static_layer=0, table=True, hidden=(5, 16, 7), options=options(num_beams=2)),
    Decode("no-image-10-beams", 1, V=150, static_layer=None, hidden=(20,), options=options(
        num_beams=10, num_return_sequences=10, max_new_tokens=3, early_stopping="never", length_penalty=-0.7)),
    Decode("vocabulary-64", 1, V=64, hidden=(33,), E=4, static_layer=0, options=options(max_new_tokens=3)),
    Decode("vocabulary-65", 1, V=65, hidden=(4,), E=140, static_layer=0, bias=False, options=options(
        early_stopping=True, length_penalty=1.3)),
    Decode("stop-when-full", 2, static_layer=0, hidden=(5,), options=options(
        early_stopping=True, length_penalty=2.0, num_return_sequences=3, max_new_tokens=7)),
    Decode("stop-when-hopeless", static_layer=0, hidden=(6,), options=options(
        num_beams=2, num_return_sequences=2, length_penalty=2.0, max_new_tokens=7)),
    Decode("never-stop", static_layer=0, hidden=(6,), options=options(
        num_beams=2, num_return_sequences=2, length_penalty=2.0, max_new_tokens=7, early_stopping="never")),
    Decode("more-beams-than-words", 2, V=3, hidden=(5,), static_layer=0, options=options(
        num_beams=7, num_return_sequences=7, max_new_tokens=3)),
    Decode("fewer-captions-than-beams", 2, V=3, hidden=(5,), static_layer=0, options=options(
        num_beams=7, num_return_sequences=7, max_new_tokens=1)),
    Decode("out-of-words", 2, V=5, static_layer=0, hidden=(5,), options=options(
        num_beams=3, num_return_sequences=3, max_new_tokens=6, no_repeat_ngram_size=1, suppress_tokens=(0,))),
    Decode("out-of-words-caffe", 2, V=5, static_layer=0, hidden=(5,), options=options(
        num_beams=3, num_return_sequences=3, max_new_tokens=6, no_repeat_ngram_size=1, compat="caffe",
        suppress_tokens=(0,))),
    Decode("twins", 2, V=24, twins=True, options=options(num_beams=5, num_return_sequences=5, max_new_tokens=3)),
    Decode("everything-ties", 1, V=70, scale=0.0, eos=0.0, options=options(num_beams=4, num_return_sequences=4, max_new_tokens=3)),
    Decode("bfloat16", 2, dtype="bfloat16", eos=6.0, options=options(num_return_sequences=3)),
    Decode("float16", 2, dtype="float16", eos=6.0, options=options(num_return_sequences=3)),
    Decode("nearly-ties", 2, V=8, scale=0.0, eos=0.0, nearly=6e-8, options=options(
        num_beams=4, num_return_sequences=4, max_new_tokens=3)),
    Decode("dead-words", 2, dead=(0, 3, 4, 7, 22), options=options(num_return_sequences=3)),
    Decode("no-images", 0),
    Decode("sample", 2, V=70, options=sampling(3)),
    Decode("sample-portions", 9, hidden=(9,), static_layer=0, options=sampling(2, max_new_tokens=3)),
    Decode("sample-rules", 2, V=70, prefix=2, eos=12.0, options=sampling(
        3, repetition_penalty=1.4, no_repeat_ngram_size=2, suppress_tokens=(3, 9, *range(20, 50)), min_new_tokens=3,
        length_penalty=0.9, temperature=0.7)),
    Decode("sample-long-rules", 3, prefix=1, options=sampling(
        3, repetition_penalty=1.5, no_repeat_ngram_size=1, max_new_tokens=6)),
    Decode("sample-wanted-repetition", 3, prefix=2, shift=-20.0, options=sampling(3, repetition_penalty=0.6)),
    Decode("sample-top-k", 2, V=150, scale=0.5, options=sampling(2, top_k=5, temperature=2.0)),
    Decode("sample-top-p", 2, V=150, scale=0.5, options=sampling(2, top_p=0.7)),
    Decode("sample-top-k-and-p", 2, V=24, twins=True, options=sampling(3, top_k=7, top_p=0.9, temperature=1.5)),
    Decode("sample-everything-ties", 1, V=70, scale=0.0, eos=0.0, options=sampling(4, top_k=20, top_p=0.5)),
    Decode("sample-the-likeliest", 2, V=138, eos=0.0, options=sampling(2, top_p=1e-9)),
    Decode("sample-cold", 2, options=sampling(2, temperature=1e-38)),
    Decode("sample-two-words", 1, V=2, options=sampling(2)),
    Decode("sample-dead-words", 2, dead=(0, 3, 4, 7, 22), options=sampling(2, top_k=19)),
    Decode("sample-out-of-words", 2, V=5, static_layer=0, hidden=(5,), options=sampling(
        3, max_new_tokens=6, no_repeat_ngram_size=1, suppress_tokens=(0,))),
    Decode("sample-34-parts", 1, V=2113, E=4, hidden=(4,), static_layer=0, scale=0.5, eos=-3.0, dead=tuple(range(5, 2060)),
           options=sampling(2, max_new_tokens=2, top_k=50, top_p=0.9)),
    Decode("sample-image-first-table", 2, static_layer=None, image_first=True, table=True, options=sampling(2)),
    Decode("sample-bfloat16", 2, dtype="bfloat16", options=sampling(2, top_k=6)),
    Decode("sample-float16", 1, dtype="float16", options=sampling(2, top_p=0.8)),
    Decode("sample-no-images", 0, options=sampling(2)),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}

# Together they run every line of the kernels.
NAMES = (
    "rules greedy-repetition wanted-repetition caffe image-first-table static-table out-of-words bfloat16 float16"
    " sample-rules sample-top-k-and-p sample-34-parts"
)
SUSPECTS = [BY_NAME[name] for name in NAMES.split()]


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode(library, case):
    for schedule in schedules(SEEDS):
        decode_cases.check_decode(library, case, fresh=True, **schedule)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tracing_knows_the_size(library, case):
    real, traced = decode_cases.packed_bytes(library, case)
    assert real == traced


@pytest.mark.parametrize("name", ["plain", "caffe", "sample-portions"])
def test_an_image_does_not_depend_on_its_batch(library, name):
    for schedule in schedules(6):
        decode_cases.check_alone(library, BY_NAME[name], **schedule)


@pytest.mark.parametrize("name", ["caffe", "rules", "sample-portions"])
def test_a_graph_serves_other_searches(library, name):
    case = BY_NAME[name]
    case = dataclasses.replace(case, images=3, options=(*case.options, ("max_new_tokens", 7)))
    for schedule in schedules(3):
        decode_cases.check_again(library, case, **schedule)


@pytest.mark.parametrize("sample", [False, True])
def test_complaints(library, sample):
    for schedule in schedules(SEEDS):
        decode_cases.check_complaints(library, sample, **schedule)


@pytest.mark.parametrize("name", ["stop-when-full", "out-of-words-caffe", "sample-out-of-words"])
def test_steps_after_the_last_image_change_nothing(library, name):
    """The host stops when it hears that all images are done, be it early or late."""
    case = BY_NAME[name]
    case = dataclasses.replace(case, options=(*case.options, ("max_new_tokens", 12)))
    (_, features, prefix), expected = decode_cases.prepared(case)
    packed = decode_cases.packed_of(library, case)
    assert decode_cases.segments(case) == 3
    for count in (5, 4, 3, 2, 1, 0):
        actual, progress = decode_cases.run(library, case, packed, features, prefix, count=count)
        if progress["finished"] < decode_cases.searches(case):
            break
        decode_cases.compare(case, actual, expected)
    assert count < 2


def test_nothing_is_found_where_no_bug_is():
    """A mutant lacks types of its kernels; what is run of it must have them all."""
    library = Library({p.name: () for p in CUDA.glob("decode*.cu")})
    for name in sorted({name for _, check in DECODE_MUTATIONS for name in check.split()} & BY_NAME.keys()):
        decode_cases.check_decode(library, BY_NAME[name])
    library.close()


@pytest.mark.parametrize(
    ("mutation", "check"), DECODE_MUTATIONS, ids=lambda x: str(x) if isinstance(x, Mutation) else ""
)
def test_planted_bug_is_found(mutation, check):
    def run(mutant, **schedule):
        for name in check.split():
            if name.endswith("complaints"):
                decode_cases.check_complaints(mutant, name.startswith("sample"), **schedule)
            else:
                decode_cases.check_decode(mutant, BY_NAME[name], fresh="pad" in mutation.kernel, **schedule)

    killed(mutation, run, 3)
