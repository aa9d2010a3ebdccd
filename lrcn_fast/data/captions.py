"""Photos and their captions in memory, and ways to split them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import overload


@dataclass(frozen=True)
class CaptionItem:
    """One photo.

    Attributes:
        id: name of the photo in metrics and result files: the data set's own id, else the file name.
        captions: what people wrote about it.
        split: "train", "val", "test" or whatever the data set calls its parts; "" where it has none.
        image: file of the photo; None if the photos are not at hand. The video, from
            :func:`~lrcn_fast.data.read_video_captions`.
    """

    id: str
    captions: tuple[str, ...]
    split: str = ""
    image: Path | None = None


class CaptionSet(Sequence[CaptionItem]):
    """An immutable list of :class:`CaptionItem`; every method returns a new one.

    Args:
        items: photos with distinct ids and at least one caption each.
        name: where they come from, for messages.

    Raises:
        ValueError: two items with one id, or an item without a caption.
    """

    def __init__(self, items: Iterable[CaptionItem], name: str = "captions") -> None:
        self.items = tuple(items)
        self.name = name
        repeated = [key for key, count in Counter(item.id for item in self.items).items() if count > 1]
        if repeated:
            raise ValueError(f"CaptionSet: items of {name} must have distinct ids, got {repeated[0]!r} twice")
        bare = [item.id for item in self.items if not item.captions]
        if bare:
            raise ValueError(f"CaptionSet: items of {name} must have a caption, got none for {bare[0]!r}")

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> CaptionItem: ...
    @overload
    def __getitem__(self, index: slice) -> "CaptionSet": ...
    def __getitem__(self, index: int | slice) -> "CaptionItem | CaptionSet":
        if isinstance(index, slice):
            return CaptionSet(self.items[index], self.name)
        return self.items[index]

    def __iter__(self) -> Iterator[CaptionItem]:
        return iter(self.items)

    def __add__(self, other: "CaptionSet") -> "CaptionSet":
        return CaptionSet((*self.items, *other.items), f"{self.name} + {other.name}")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name or 'no split'}: {count}" for name, count in self.splits.items())
        return f"CaptionSet({self.name}: {len(self)} photos, {len(self.captions())} captions; {parts})"

    @property
    def splits(self) -> dict[str, int]:
        """Photos per split, in order of first appearance."""
        return dict(Counter(item.split for item in self.items))

    def split(self, *names: str) -> "CaptionSet":
        """Return the photos of the named splits.

        Raises:
            ValueError: no photo has one of these splits.
        """
        absent = [name for name in names if name not in self.splits]
        if absent:
            raise ValueError(
                f"CaptionSet.split: names must be among {sorted(self.splits)} of {self.name}, "
                f"got {absent[0]!r}"
            )
        return self.filter(lambda item: item.split in names)

    def filter(self, keep: Callable[[CaptionItem], bool]) -> "CaptionSet":
        """Return the photos for which ``keep`` is true."""
        return CaptionSet(filter(keep, self.items), self.name)

    def exclude(self, names: Collection[str]) -> "CaptionSet":
        """Return the photos whose id, file name and file stem are all outside ``names``.

        This is how text of the same photos under another roof is kept out of a vocabulary or a language
        model: see :func:`photo_names`.
        """
        if isinstance(names, str):
            raise ValueError(f"CaptionSet.exclude: names must be a collection of str, got {names!r}")
        unwanted = {form for name in names for form in _forms(name)}
        return self.filter(lambda item: unwanted.isdisjoint(photo_names([item])))

    def captions(self) -> list[str]:
        """Return every caption, photo by photo."""
        return [caption for item in self.items for caption in item.captions]

    def references(self) -> dict[str, list[str]]:
        """Return {id: captions} as :func:`lrcn_fast.evaluation.caption_metrics` takes it."""
        return {item.id: list(item.captions) for item in self.items}

    def with_splits(self, splits: Mapping[str, Collection[str]]) -> "CaptionSet":
        """Set the splits from lists of photo names, such as the official Flickr8k lists.

        Photos in none of the lists are left out.

        Args:
            splits: {split: ids, file names or file stems}.

        Raises:
            ValueError: a photo is in two lists, or none is in any.
        """
        owner: dict[str, str] = {}
        for split, names in splits.items():
            for name in names:
                for form in _forms(name):
                    if owner.setdefault(form, split) != split:
                        raise ValueError(
                            f"CaptionSet.with_splits: splits must not overlap, got {name!r} "
                            f"in {owner[form]!r} and {split!r}"
                        )
        items = []
        for item in self.items:
            found = {owner[form] for form in photo_names([item]) if form in owner}
            if found:
                items.append(replace(item, split=min(found)))
        if not items:
            raise ValueError(
                f"CaptionSet.with_splits: splits must name photos of {self.name}, got none of them"
            )
        return CaptionSet(items, self.name)

    def hold_out(
        self, count: int | float, *, source: str = "train", name: str = "held_out", seed: int = 0
    ) -> "CaptionSet":
        """Move some photos of one split into a new one, to choose settings on.

        A photo goes with all its captions. Who moves depends on the ids and the seed only: not on the order
        of the items, and a photo that moved at one count moves at every larger one.

        Args:
            count: how many photos, or a fraction of the split if it is a float below 1.
            source: split they are taken from.
            name: split they get.
            seed: another seed chooses others.

        Raises:
            ValueError: no such split, a count that leaves it or the new split empty, or ``name`` taken.
        """
        pool = self.split(source)
        number = round(count * len(pool)) if isinstance(count, float) and count < 1 else int(count)
        if not 0 < number < len(pool):
            raise ValueError(
                f"CaptionSet.hold_out: count must be between 1 and {len(pool) - 1} photos of {source!r}, "
                f"got {count}"
            )
        if name in self.splits:
            raise ValueError(f"CaptionSet.hold_out: name must be a new split, got {name!r}")

        def draw(item: CaptionItem) -> str:
            return hashlib.sha256(f"{seed}/{item.id}".encode()).hexdigest()

        moved = {item.id for item in sorted(pool, key=draw)[:number]}
        return CaptionSet(
            (replace(item, split=name) if item.id in moved else item for item in self.items), self.name
        )


def photo_names(items: Iterable[CaptionItem]) -> set[str]:
    """Return every name a photo may go by elsewhere: its id, its file name, and both without their suffix.

    Use it to keep the photos you evaluate on out of text you train on. The captions of all Flickr8k
    photos, for example, contain the captions of any test subset of Flickr8k::

        text = read_captions("captions.csv.gz", exclude=photo_names(small.split("dev")))
    """
    names: set[str] = set()
    for item in items:
        names.update(_forms(item.id))
        if item.image is not None:
            names.update(_forms(item.image.name))
    return names


_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def _forms(name: str) -> set[str]:
    path = PurePath(name)
    return {name, path.name, path.stem} if path.suffix.lower() in _SUFFIXES else {name}
