"""Words and their indices, as the LRCN release defines them, and captions as index sequences.

The rule for words: cut at every run of non-word characters (ASCII sense: a letter with an accent is
a separator), keep such a run as one token without the spaces around it, lower-case, drop a final ".".
So "A man's hat." is a / man / ' / s / hat.

Nothing here needs torch: the numpy runtime reads the same vocabulary.json.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lrcn_fast._files import parse_json, read_text, write_atomic

EOS_WORD = "<eos>"
UNK_WORD = "<unk>"

_FORMAT = 1
_KIND = "lrcn_fast vocabulary"
_SEPARATOR = re.compile(r"(\W+)", re.ASCII)


def tokenize(text: str) -> list[str]:
    """Cut a caption into the words the vocabulary counts.

    Args:
        text: one caption, as a person wrote it.

    Returns:
        Lower-case words and runs of punctuation, without a final ".".
    """
    tokens = [piece.strip().lower() for piece in _SEPARATOR.split(text.strip())]
    tokens = [token for token in tokens if token]
    if tokens and tokens[-1] == ".":
        tokens.pop()
    return tokens


class Vocabulary:
    """An ordered list of words; the index of a word is its id.

    The paper's layout (:meth:`from_captions`, :meth:`from_words`) has index 0 for the end of a sentence,
    which is also its begin and its padding, and index 1 for unknown words. Other code bases keep them
    apart: name their indices.

    Args:
        words: every entry in index order, special ones included; no duplicates.
        bos_id: index fed before the first word.
        eos_id: index that ends a sentence.
        pad_id: index that fills a batch behind the ends.
        unk_id: index of words that are not in the list; None if there is none.

    Raises:
        ValueError: empty or duplicate words, or an id outside the list.

    Example:
        >>> vocabulary = Vocabulary.from_words(["a", "man", "riding"])
        >>> vocabulary.encode("A man riding a horse.")
        [2, 3, 4, 2, 1]
        >>> vocabulary.decode([2, 3, 4, 0])
        'A man riding.'
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        bos_id: int = 0,
        eos_id: int = 0,
        pad_id: int = 0,
        unk_id: int | None = 1,
    ) -> None:
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"Vocabulary: words must be a list of str, got {_short(words)}")
        self.words: tuple[str, ...] = tuple(words)
        self._index = {word: index for index, word in enumerate(self.words)}
        if len(self._index) != len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise ValueError(f"Vocabulary: words must be distinct, got {word!r} {count} times")
        if "" in self._index:
            raise ValueError(f'Vocabulary: words must not be empty, got "" at index {self._index[""]}')
        for name, value in (("bos_id", bos_id), ("eos_id", eos_id), ("pad_id", pad_id), ("unk_id", unk_id)):
            if name == "unk_id" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(self.words):
                raise ValueError(
                    f"Vocabulary: {name} must be in [0, words) = [0, {len(self.words)}), got {value!r}"
                )
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos_id, eos_id, pad_id, unk_id

    @classmethod
    def from_words(cls, words: Iterable[str]) -> "Vocabulary":
        """Put the paper's two special entries before a list of words.

        "<eos>" and "<unk>" (in any case) inside ``words`` are not repeated, so that a list of this package
        and the word file of the original release (which starts with "<unk>") both give the indices they had.

        Args:
            words: words in order of their index, from 2 on.

        Raises:
            ValueError: a str in place of a list, an entry that is no str, or a word twice.
        """
        if isinstance(words, str):
            raise ValueError(f"Vocabulary.from_words: words must be a list of words, got {words!r}")
        words = list(words)
        for index, word in enumerate(words):
            if not isinstance(word, str):
                raise ValueError(f"Vocabulary.from_words: words[{index}] must be a str, got {word!r}")
        rest = [word for word in words if word.lower() not in (EOS_WORD, UNK_WORD)]
        return cls([EOS_WORD, UNK_WORD, *rest])

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 5) -> "Vocabulary":
        """Count the words of training captions and keep the frequent ones.

        Args:
            captions: all captions of the training split.
            min_count: keep words seen at least this often (5 in the paper's release).

        Returns:
            The vocabulary, most frequent word first, ties in alphabetical order, behind "<eos>" and "<unk>".

        Raises:
            ValueError: min_count below 1, or a str in place of a list.
        """
        if isinstance(captions, str):
            raise ValueError("Vocabulary.from_captions: captions must be a list of str, got one str")
        if min_count < 1:
            raise ValueError(f"Vocabulary.from_captions: min_count must be at least 1, got {min_count}")
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(tokenize(caption))
        kept = [(-count, word) for word, count in counts.items() if count >= min_count]
        return cls([EOS_WORD, UNK_WORD, *(word for _, word in sorted(kept))])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._index

    def __getitem__(self, index: int) -> str:
        return self.words[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.words, self.bos_id, self.eos_id, self.pad_id, self.unk_id))

    def __repr__(self) -> str:
        ids = f"bos_id={self.bos_id}, eos_id={self.eos_id}, pad_id={self.pad_id}, unk_id={self.unk_id}"
        return f"Vocabulary({len(self.words)} words, {ids})"

    def index(self, word: str) -> int:
        """Return the index of a word, or unk_id.

        Raises:
            ValueError: the word is not in the list and there is no unk_id.
        """
        index = self._index.get(word, self.unk_id)
        if index is None:
            raise ValueError(f"Vocabulary.index: word must be one of {len(self)} (no unk_id), got {word!r}")
        return index

    def encode(self, text: str, *, max_words: int | None = None) -> list[int]:
        """Turn a caption into word indices.

        Args:
            text: one caption.
            max_words: keep at most this many words; None keeps all.

        Returns:
            Indices of the words; neither BOS nor EOS. A word spelled like a special entry counts as unknown.
        """
        if max_words is not None and max_words < 0:
            raise ValueError(f"Vocabulary.encode: max_words must not be negative, got {max_words}")
        return [self.index(word) for word in tokenize(text)[:max_words]]

    def encode_target(self, text: str, max_words: int = 20) -> list[int]:
        """Turn a caption into what a decoder is trained to emit: word indices, then EOS.

        Longer captions are cut to ``max_words`` entries and then have no EOS, as in the release.

        Args:
            text: one caption.
            max_words: most entries of the result, EOS included.

        Returns:
            Between 1 and max_words indices.
        """
        if max_words < 1:
            raise ValueError(f"Vocabulary.encode_target: max_words must be at least 1, got {max_words}")
        return [*self.encode(text, max_words=max_words), self.eos_id][:max_words]

    def decode(self, ids: Iterable[int], *, plain: bool = False) -> str:
        """Turn indices back into text, up to the first EOS.

        Args:
            ids: word indices (ints, a list, a 1-D array or tensor); BOS and padding are skipped.
            plain: only the words, joined by spaces. Otherwise a sentence as the release prints it: first
                letter in upper case, "." where EOS was reached and "..." where it was not.

        Returns:
            The text; "" if there is no word.

        Raises:
            ValueError: an index outside the vocabulary.
        """
        chosen, ended = [], False
        for value in ids.tolist() if hasattr(ids, "tolist") else ids:
            if value == self.eos_id:
                ended = True
                break
            if value in (self.bos_id, self.pad_id):
                continue
            if not 0 <= value < len(self.words):
                raise ValueError(
                    f"Vocabulary.decode: ids must be in [0, words) = [0, {len(self)}), got {value}"
                )
            chosen.append(self.words[value])
        text = " ".join(chosen)
        if plain or not text:
            return text
        return text[0].upper() + text[1:] + ("." if ended else "...")

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`save` writes."""
        return {
            "kind": _KIND,
            "format": _FORMAT,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "unk_id": self.unk_id,
            "words": list(self.words),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON; a reader never sees half a file."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=0)
        write_atomic(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is cut short, is not a vocabulary, or is of a newer format.
        """
        path = Path(path)
        content = parse_json(read_text(path, "Vocabulary.load"), path, "Vocabulary.load")
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise ValueError(
                f'Vocabulary.load: {path} must be a JSON object with "kind": "{_KIND}", got {_short(content)}'
            )
        if content.get("format") != _FORMAT:
            raise ValueError(
                f"Vocabulary.load: {path} must have format {_FORMAT}, got {content.get('format')!r}"
            )
        names = ("bos_id", "eos_id", "pad_id", "unk_id", "words")
        absent = [name for name in names if name not in content]
        if absent or not isinstance(content["words"], list):
            raise ValueError(
                f"Vocabulary.load: {path} must have {', '.join(names)}, got {_short(sorted(content))}"
            )
        try:
            return cls(content["words"], **{name: content[name] for name in names[:-1]})
        except ValueError as error:
            raise ValueError(f"Vocabulary.load: {path}: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
