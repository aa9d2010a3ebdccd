"""A made-up corpus of kitchen clips and sentences, for what the paper did with TACoS multilevel.

TACoS and its CRF scores cannot be had, so a grammar stands in. Everything below was fixed before any model
was trained on it.

**Scenes.** A clip has five variables, as the paper's: activity, tool, object, source and target location. The
activity is drawn uniformly; it decides which tools, kinds of objects and places are possible, and these are
drawn uniformly from there ("none" where an activity has no such thing).

**Sentences.** One to three templates per activity mention some of the variables; subjects, verbs, places and
some objects have synonyms. Each clip gets several sentences, drawn independently.

**The CRF.** Each variable is seen through Gaussian noise, and the "CRF" knows the noise and the frequency
of the labels, so that its marginals are right: with a label's vector m_l = (0.8 e_group(l), 0.6 e_l), where
labels of one group (knife and peeler, carrot and cucumber, bowl and plate) share the first part,

    x = m_true + sigma n,   n ~ N(0, I),   p(l | x) ~ frequency(l) exp(-|x - m_l|^2 / (2 sigma^2))

sigma is drawn for each variable of each clip, uniformly from [0.2, 0.7]: some are plain to see, others are
not, and confusions are mostly within a group. MAP is the best label of each variable: they are observed
independently, and what their combination tells is left to the language model, as is the case for (a), (b)
and (c) alike.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrcn_fast.data.crf_clips import CrfClip, CrfSet

__all__ = ["kitchen_clips"]

NODES = ("activity", "tool", "object", "source", "target")

NOISE = (0.2, 0.7)
"""Range of sigma."""

GROUP, OWN = 0.8, 0.6
"""Length of the two parts of a label's vector."""

OBJECTS = {
    "vegetable": ("carrot", "cucumber", "potato", "onion", "leek", "broccoli", "pepper", "cauliflower"),
    "fruit": ("orange", "pineapple", "mango", "fig", "plum", "kiwi", "lime", "pomegranate"),
    "seasoning": ("herbs", "ginger", "garlic", "chilli", "salt"),
    "basics": ("bread", "egg", "pasta", "cheese", "butter", "oil", "water"),
}

TOOLS = {
    "blade": ("knife", "peeler", "grater"),
    "stirrer": ("spoon", "fork", "whisk", "spatula"),
    "hands": ("hand", "none"),
    "squeezer": ("juicer", "garlic press"),
}

PLACES = {
    "storage": ("drawer", "fridge", "cupboard", "spice rack"),
    "dish": ("bowl", "plate", "glass"),
    "cooker": ("pan", "pot", "stove"),
    "surface": ("cutting board", "counter"),
    "sink": ("sink", "bin"),
    "nowhere": ("none",),
}

SYNONYMS = {
    "fridge": ("fridge", "refrigerator"),
    "cupboard": ("cupboard", "cabinet"),
    "bin": ("bin", "trash can"),
    "pan": ("pan", "frying pan"),
    "counter": ("counter", "table"),
    "hand": ("hands", "fingers"),
    "chilli": ("chilli", "chilli pepper"),
}

SUBJECTS = ("the person", "he", "she", "someone", "the man", "the woman")


@dataclass(frozen=True)
class _Activity:
    tools: tuple[str, ...]
    objects: tuple[str, ...]  # kinds, or names
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    templates: tuple[str, ...]


def _activity(tools: str, objects: str, sources: str, targets: str, *templates: str) -> _Activity:
    lists = [tuple(x.split(", ")) for x in (tools, objects, sources, targets)]
    return _Activity(lists[0], lists[1], lists[2], lists[3], templates)


ACTIVITIES = {
    "take out": _activity(
        "hand", "vegetable, fruit, basics", "fridge, cupboard, drawer", "counter",
        "{s} takes out a {o}", "{s} takes a {o} from the {a}", "{s} gets a {o} out of the {a}",
    ),
    "put away": _activity(
        "hand", "vegetable, fruit, basics", "counter", "fridge, cupboard, drawer",
        "{s} puts the {o} back in the {b}", "{s} returns the {o} to the {b}",
    ),
    "wash": _activity(
        "hand", "vegetable, fruit", "sink", "none",
        "{s} washes the {o} in the sink", "{s} rinses the {o}", "{s} rinses the {o} under the tap",
    ),
    "cut": _activity(
        "knife", "vegetable, fruit, bread", "none", "cutting board, plate",
        "{s} cuts the {o} on the {b}", "{s} cuts the {o} with a {t}", "{s} chops up the {o}",
    ),
    "slice": _activity(
        "knife", "vegetable, fruit, bread, cheese", "none", "cutting board, plate",
        "{s} slices the {o}", "{s} cuts the {o} into thin slices", "{s} slices the {o} on the {b}",
    ),
    "peel": _activity(
        "peeler, knife, hand", "vegetable, fruit", "none", "cutting board, bowl, bin",
        "{s} peels the {o} with a {t}", "{s} removes the skin of the {o}", "{s} peels the {o} over the {b}",
    ),
    "grate": _activity(
        "grater", "carrot, ginger, cheese, potato", "none", "bowl, plate",
        "{s} grates the {o} into the {b}", "{s} uses a {t} on the {o}",
    ),
    "squeeze": _activity(
        "juicer, garlic press, hand", "orange, lime, garlic, pomegranate", "none", "glass, bowl",
        "{s} squeezes the {o} into the {b}", "{s} presses the juice out of the {o} with a {t}",
    ),
    "stir": _activity(
        "spoon, fork, whisk, spatula", "egg, pasta, vegetable, butter", "none", "pan, pot, bowl",
        "{s} stirs the {o} in the {b}", "{s} stirs with a {t}", "{s} mixes the {o} with a {t}",
    ),
    "pour": _activity(
        "hand", "oil, water", "cupboard, sink, counter", "pan, pot, glass, bowl",
        "{s} pours some {o} into the {b}", "{s} fills the {b} with {o}", "{s} adds {o} to the {b}",
    ),
    "add": _activity(
        "hand, knife, spoon", "vegetable, seasoning, pasta, butter", "cutting board, plate, bowl",
        "pan, pot, bowl",
        "{s} adds the {o} to the {b}", "{s} puts the {o} into the {b}",
        "{s} moves the {o} from the {a} to the {b}",
    ),
    "season": _activity(
        "hand, spoon", "seasoning", "spice rack, cupboard", "pan, pot, bowl",
        "{s} seasons with {o}", "{s} sprinkles some {o} into the {b}", "{s} takes {o} from the {a}",
    ),
    "crack": _activity(
        "hand, knife, fork", "egg", "none", "bowl, pan",
        "{s} cracks the {o} into the {b}", "{s} breaks an {o} with a {t}",
    ),
    "spread": _activity(
        "knife", "butter, cheese", "plate", "plate, cutting board",
        "{s} spreads {o} on the bread", "{s} spreads the {o} with a {t}",
    ),
    "throw away": _activity(
        "hand, knife", "vegetable, fruit, egg", "cutting board, plate, counter", "bin",
        "{s} throws the peel of the {o} into the {b}", "{s} throws away the rest of the {o}",
        "{s} clears the {a} of the {o}",
    ),
}  # fmt: skip


def kitchen_clips(
    clips: int = 2000, *, sentences: int = 3, noise: tuple[float, float] = NOISE, seed: int = 0
) -> CrfSet:
    """Make clips with CRF outputs and sentences; see the head of this file.

    Args:
        clips: How many; 70 % are "train", 10 % "val", 20 % "test", in random order.
        sentences: Of each clip.
        noise: Lowest and highest sigma.
        seed: Same seed, same clips; the scenes and sentences do not depend on ``noise``.
    """
    if clips < 10:
        raise ValueError(f"kitchen_clips: clips must be at least 10, got {clips}")
    if not 0 < noise[0] <= noise[1]:
        raise ValueError(f"kitchen_clips: noise must be 0 < lowest <= highest, got {noise}")
    rng, noise_rng = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    scenes = [_scene(rng) for _ in range(clips)]
    texts = [tuple(_sentence(rng, scene) for _ in range(sentences)) for scene in scenes]
    splits = np.repeat(["train", "val", "test"], np.diff([0, clips * 7 // 10, clips * 8 // 10, clips]))
    rng.shuffle(splits)
    alone: dict[str, tuple[str, ...]] = {activity: (activity,) for activity in ACTIVITIES}
    groups = [alone, TOOLS, OBJECTS, PLACES, PLACES]
    sensors = [_Sensor(g, [scene[i] for scene in scenes], noise) for i, g in enumerate(groups)]
    made = []
    for number, (scene, text, split) in enumerate(zip(scenes, texts, splits, strict=True)):
        marginals = [sensor.marginals(noise_rng, label) for sensor, label in zip(sensors, scene, strict=True)]
        best = tuple(s.labels[int(np.argmax(p))] for s, p in zip(sensors, marginals, strict=True))
        probs = tuple(tuple(round(float(x), 5) for x in p) for p in marginals)
        made.append(CrfClip(f"kitchen{number:05d}", probs, best, text, str(split)))
    return CrfSet({n: s.labels for n, s in zip(NODES, sensors, strict=True)}, made, "kitchen")


class _Sensor:
    """The CRF's view of one variable."""

    def __init__(
        self, groups: dict[str, tuple[str, ...]], true: Sequence[str], noise: tuple[float, float]
    ) -> None:
        self.labels = tuple(label for labels in groups.values() for label in labels)
        L = len(self.labels)
        of = [g for g, labels in enumerate(groups.values()) for _ in labels]
        self.means = np.concatenate([GROUP * np.eye(len(groups))[of], OWN * np.eye(L)], axis=1)
        counts = np.array([list(true).count(label) for label in self.labels])
        self.log_prior = np.log((counts + 0.5) / (counts + 0.5).sum())
        self.noise = noise

    def marginals(self, rng: np.random.Generator, label: str) -> np.ndarray:
        sigma = rng.uniform(*self.noise)
        x = self.means[self.labels.index(label)] + sigma * rng.standard_normal(self.means.shape[1])
        scores = self.log_prior - ((x - self.means) ** 2).sum(1) / (2 * sigma**2)
        p = np.exp(scores - scores.max())
        return np.asarray(p / p.sum())


def _scene(rng: np.random.Generator) -> tuple[str, ...]:
    name = str(rng.choice(list(ACTIVITIES)))
    activity = ACTIVITIES[name]
    kind = str(rng.choice(activity.objects))
    return (
        name,
        str(rng.choice(activity.tools)),
        str(rng.choice(OBJECTS.get(kind, (kind,)))),
        str(rng.choice(activity.sources)),
        str(rng.choice(activity.targets)),
    )


def _sentence(rng: np.random.Generator, scene: tuple[str, ...]) -> str:
    name, *labels = scene
    tool, thing, source, target = (str(rng.choice(SYNONYMS.get(x, (x,)))) for x in labels)
    template = str(rng.choice(ACTIVITIES[name].templates))
    if tool in ("hands", "fingers"):
        template = template.replace("a {t}", f"his {tool}")
    text = template.format(s=rng.choice(SUBJECTS), t=tool, o=thing, a=source, b=target)
    return re.sub(r"\ba (?=[aeiou])", "an ", text).capitalize() + "."
