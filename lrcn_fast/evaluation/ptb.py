"""A tokenizer for captions that gives what COCO's evaluation gives: Penn Treebank tokens in lower case.

The published numbers of captioners are computed on the output of Stanford CoreNLP 3.4.1's PTBTokenizer,
lower-cased and without lone punctuation. That is a Java program; this one is a page of regular expressions
written from its observed behaviour. At every position each pattern below is tried and the longest match is
the next token, so a pattern says what may be a token, not in which order things are looked for.

Worth knowing: "can't" is two tokens (ca n't), "cannot" too; "black-white" and "sink/toilet" are one;
brackets become -lrb- -rrb- -lsb- -rsb- -lcb- -rcb- and stay; quotes, and single . , : ; ? ! - go.
"""

import re
import unicodedata
from functools import lru_cache

_L = r"[^\W\d_]"  # a letter
_A = r"[^\W_]"  # a letter or a digit
_HOST = rf"{_A}[\w-]*(?:\.{_A}[\w-]*)*"
_Q = r"'"  # typographic apostrophes are mapped to it beforehand
_END = rf"(?!{_A})"
_ALONE = r"(?![\w'])"

# Abbreviations that keep their full stop, wherever they stand.
_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn asst atty aug ave bldg blvd brig bros calif capt cf cmdr co col colo
comdr conn corp cos cpl ct dak dec dept det dr drs elec esq est etc ext feb fla fri ft ga gen gov hon inc
ind insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar messrs mich minn mlle mme mo mon mont mr
mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof pvt rd rep reps rev rt sen sep sept sgt
sq sr st ste supt tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo ph\\.d
"""
# Those that are words too, and count only with a capital.
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Mfg Miss Ore Pa Tex Wash"
# Those that count only before a number.
_NUMBER_ABBREVIATIONS = "art ca fig figs no nos op pp prop"


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_CAPITALS = "|".join(f"{word}|{word.upper()}" for word in _CAPITAL_ABBREVIATIONS.split())
# "He'ahe": an apostrophe between two vowels is part of the word (Hawaiian, Arabic names).
_PLAIN = rf"{_L}+(?:(?<={_L}[aeiouyAEIOUY]){_Q}(?=[aeiouAEIOU]){_L}+)*"

_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        # Contractions: the stem is cut before n't, the rest behind the apostrophe.
        rf"(?i:{_L}+?(?=(n{_Q}t{_END})))",
        rf"(?i:n{_Q}t){_END}",
        rf"(?i:{_Q}(?:[msdn]|re|ve|ll)){_END}",
        rf"(?i:can(?=(not{_ALONE}))|(?:gon|wan)(?=(na{_ALONE}))|got(?=(ta{_ALONE}))|(?:gim|lem)(?=(me{_ALONE})))",
        rf"(?i:{_Q}t(?=((?:is|was){_END})))",
        # Words; a full stop, "!" or "?" without a space behind it does not end one.
        rf"{_PLAIN}(?:-{_A}+)*",
        rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*",
        rf"{_A}+(?:\.?-{_A}+)*(?:/{_A}+(?:-{_A}+)*)*",
        rf"{_A}+(?:[-_]{_A}+)*",
        rf"(?:{_A}+(?:[-_]{_A}+)*|{_L}{_A}*(?:[.!?]{_L}{_A}*)*)\.(?=[,;:])",
        # Apostrophes inside words: d'Arnaud, O'Connor, o'clock, rock 'n' roll, the '50s.
        rf"(?:[dlno]|[A-HJ-XZ]){_Q}(?!(?i:[msdnt]|re|ve|ll){_END}){_L}{_A}*(?:-{_A}+)*",
        rf"(?i:{_Q}n{_Q})",
        rf"(?i:y{_Q})(?={_L})",
        rf"(?i:ol{_Q}|dunkin{_Q}|somethin{_Q}|{_Q}em{_END}|c{_Q}mon|cap{_Q}n|nor{_Q}easter|{_Q}cause"
        rf"|{_Q}till?|ma{_Q}am|e{_Q}er|d{_Q}ye){_END}",
        rf"(?i:{_Q}\d0s)(?!{_Q}s)|{_Q}\d\d{_END}(?![{_Q}\"])",
        # Abbreviations and initials with their full stops.
        rf"(?i:{_any(_ABBREVIATIONS)})\.",
        rf"(?:{_CAPITALS})\.",
        rf"(?i:{_any(_NUMBER_ABBREVIATIONS)})\.(?=\d|$)",  # "$": the chunk ends
        rf"{_L}\.(?!{_A})",
        rf"{_L}(?:\.{_L})+\.(?!{_A})",
        rf"(?:{_L}\.)+{_L}?-{_A}+(?:-{_A}+)*",
        r"[A-Z]+(?:[&+][A-Z]+)+|[A-Z]\+\+|[A-Z]#|(?:US|[AC])\$",
        # Numbers: 3.50 1,000 6:53 3/4 10-29-2011 -5 .5
        r"[-+]?[.,:]?\d+(?:[-.,:/]\d+)*",
        r"(?:\d+\u00a0)?\d/\d",
        # Addresses.
        r"https?://[^\s\"<>]+[^\s\"<>.,;:!?')\]]",
        rf"(?i:www\.{_HOST}\.{_HOST}|{_HOST}\.(?:com|net|org|edu)){_END}(?:/[\w./?=&%-]*\w)?",
        rf"[\w.-]*{_A}@{_A}[\w@-]*(?:\.{_A}[\w-]*)*",
        rf"@{_L}\w*|#{_L}{_A}*",
        # Faces, tags, entities.
        r"[:;=][-']?(?:[()\[\]DPdp]|(?<=:)O|(?<=[:=;]-)[oO])(?![^\W_])",
        r"</?[A-Za-z][^<>\s]*>|&[a-z]+;|&#\d+;|\^_\^",
        # Runs of one mark.
        r"[!?]+|\.{3,}|-{2,}|\*+|@+|#+|_+|<<|>>|''|``",
        # Anything else stands alone; characters that are no marks of writing are dropped below.
        r"[^\w\s]|_",
    )
]

_SUBSTITUTES = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "", "€": "$", "£": "#", "¢": "cents",
}  # fmt: skip
_CHARACTERS = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201b": "'", "\u2039": "'", "\u203a": "'", "\u201c": '"', "\u201d": '"',
    "\u00ab": '"', "\u00bb": '"', "\u2013": "--", "\u2014": "--", "\u2026": "...",
    "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4", "\u00ad": "-", "\u2010": "-", "\u2011": "-",
})  # fmt: skip

_BEFORE_NUMBER = next(pattern for pattern in _PATTERNS if "prop" in pattern.pattern)
_INITIAL = next(pattern for pattern in _PATTERNS if pattern.pattern.startswith(rf"{_L}\."))
_MIXED_NUMBER = re.compile(r"(?<!\S)(\d+) +(\d+/\d+)(?!\d)")
_SPACE = re.compile(r"[^\S\u00a0]+")  # a no-break space binds the parts of 1 1/2
# Words that, capitalised behind "K. ", show that the full stop ends a sentence.
_STARTERS = frozenset(
    """a about according after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet
    you""".split()
)
_COMPOUNDS = ("cannot", "gonna", "wanna", "gotta", "gimme", "lemme")
# Dropped where they stand alone: control characters, unassigned code points; and emoji, which are beyond
# U+FFFF.
_NO_MARKS = {"Cc", "Cf", "Cn", "Co", "Cs"}

PUNCTUATION = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Tokens that COCO's evaluation drops."""


@lru_cache(maxsize=1 << 16)
def _split(chunk: str, number_follows: bool, sentence_follows: bool) -> tuple[str, ...]:
    """Cut text without spaces; the flags tell what the next chunk starts."""
    if chunk.isascii() and chunk.isalpha() and chunk.islower() and not chunk.startswith(_COMPOUNDS):
        return (chunk,)
    tokens, start = [], 0
    while start < len(chunk):
        best, end = 0, start + 1
        for pattern in _PATTERNS:
            match = pattern.match(chunk, start)
            if match is None:
                continue
            last = match.end() == len(chunk)
            if last and (pattern is _BEFORE_NUMBER and not number_follows):
                continue
            if last and (pattern is _INITIAL and sentence_follows):
                continue
            # A stem is as long as its contraction when lengths are compared.
            reach = max(match.end(), match.end(match.lastindex or 0))
            if reach > best:
                best, end = reach, match.end()
        token = chunk[start:end]
        start = end
        if len(token) == 1 and (token > "\uffff" or unicodedata.category(token) in _NO_MARKS):
            continue
        token = _SUBSTITUTES.get(token, token).lower()
        if len(token) > 1 and not token.strip("-."):
            continue
        if len(token) > 1 and not token.isalnum():  # brackets inside faces
            token = "".join(_SUBSTITUTES.get(c, c) if c in "()" else c for c in token)
        if token and token not in PUNCTUATION:
            tokens.append(token)
    return tuple(tokens)


def ptb_tokenize(text: str) -> list[str]:
    """Cut a caption into the tokens that BLEU, ROUGE-L, METEOR and CIDEr-D of the COCO evaluation count.

    Args:
        text: one caption.

    Returns:
        Lower-case tokens without lone punctuation.
    """
    text = text.replace("\u00a0", " ")
    if "/" in text:
        text = _MIXED_NUMBER.sub("\\1\u00a0\\2", text)
    text = text.translate(_CHARACTERS)
    chunks = [chunk for chunk in _SPACE.split(text) if chunk]
    tokens: list[str] = []
    for number, chunk in enumerate(chunks, 1):
        following = chunks[number] if number < len(chunks) else ""
        starts = not following.islower() and following.lower() in _STARTERS
        tokens += _split(chunk, following[:1].isdigit(), starts)
    return tokens
