"""METEOR 1.5 and SPICE 1.0: the Java programs that come with pycocoevalcap, run from here.

Their Python wrappers in that package can block for ever and hide what went wrong; here every run has a time
limit and its errors are passed on.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

TIMEOUT = 1800.0
"""Seconds one run may take."""


def _package(metric: str) -> Path:
    """Return the folder of pycocoevalcap, after checking that there is a Java to run its programs."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"caption_metrics: {metric} needs pycocoevalcap: pip install 'lrcn_fast[eval]'")
    if shutil.which("java") is None:
        raise RuntimeError(
            f"caption_metrics: {metric} needs Java, and there is no java on the PATH: install a Java runtime "
            "(Debian, Ubuntu: apt install default-jre-headless)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _clean(text: str) -> str:
    """Keep the field separator of the METEOR protocol out of a caption."""
    return " ".join(re.sub(r"\|{2,}", " ", text).split())


def meteor(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014), English, of a whole set.

    Args:
        references: per photo, its references, tokenised.
        candidates: per photo, its candidate, tokenised.

    Returns:
        The score computed from the statistics of all photos.
    """
    folder = _package("METEOR") / "meteor"
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(line: str, answers: int) -> list[str]:
                """Send one line, return the last of the lines that answer it."""
                process.stdin.write(line + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                return [process.stdout.readline().strip() for _ in range(answers)]  # type: ignore[union-attr]

            statistics = []
            for photo, candidate in zip(references, candidates, strict=True):
                fields = ["SCORE", *map(_clean, photo), _clean(candidate)]
                statistics += ask(" ||| ".join(fields), 1)
            # One score per photo, then the score of all.
            return float(ask(" ||| ".join(["EVAL", *statistics]), len(statistics) + 1)[-1])
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines()
            raise RuntimeError(
                f"caption_metrics: METEOR's Java program failed: {said[-1] if said else error}"
            ) from error
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def spice(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> float:
    """SPICE 1.0 (Anderson et al. 2016), mean F-score over photos.

    It needs Stanford's parser models (384 MB), which are not in any Python package: see the message of the
    error.

    Args:
        references: per photo, its references.
        candidates: per photo, its candidate.
    """
    folder = _package("SPICE") / "spice"
    if not list((folder / "lib").glob("stanford-corenlp-*-models.jar")):
        raise RuntimeError(
            "caption_metrics: SPICE needs Stanford CoreNLP 3.6.0, a download of 384 MB that is never started "
            "from here. Fetch it with: python -c 'from pycocoevalcap.spice.get_stanford_models import "
            f"get_stanford_models as get; get()', which fills {folder / 'lib'}"
        )
    entries = [
        {"image_id": str(number), "test": candidate, "refs": list(photo)}
        for number, (photo, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "in.json"), Path(scratch, "out.json")
        given.write_text(json.dumps(entries))
        command = [
            "java",
            "-Xmx8G",
            "-jar",
            "spice-1.0.jar",
            str(given),
            "-out",
            str(result),
            "-subset",
            "-silent",
        ]
        try:
            run = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"caption_metrics: SPICE took more than {TIMEOUT:.0f} s") from error
        if run.returncode != 0 or not result.exists():
            said = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
            raise RuntimeError(
                f"caption_metrics: SPICE's Java program failed (it is known to want Java 8): {said[-1]}"
            )
        scores = [entry["scores"]["All"]["f"] for entry in json.loads(result.read_text())]
    values = [float(score) for score in scores if score is not None]
    return sum(values) / len(values) if values else 0.0


SCORERS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str]], float]] = {
    "meteor": meteor,
    "spice": spice,
}
