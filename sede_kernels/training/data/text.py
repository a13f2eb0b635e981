"""Words and their numbers."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sede_kernels.training.files import UserError

PAD, UNKNOWN = "<pad>", "<unk>"
_SPECIAL = (PAD, "<start>", "<end>", UNKNOWN)
_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokenize(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks.

    >>> tokenize("A dog's bell, outline")
    ['a', 'dog', "'", 's', 'bell', ',', 'outline']
    """
    return _TOKEN.findall(caption.lower())


class Vocabulary:
    """Numbers of words, in the JSON layout of the SCAN family.

    Args:
        words: word -> number; ``<unk>`` must be there and ``<pad>`` must be 0.
    """

    def __init__(self, words: dict[str, int]) -> None:
        self.words = words
        self._unknown = words[UNKNOWN]

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Words that occur at least ``min_count`` times, most frequent first, ties by spelling."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted(
            (w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w)
        )
        return cls({word: number for number, word in enumerate((*_SPECIAL, *kept))})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a vocabulary JSON with a ``word2idx`` table.

        Raises:
            UserError: not such a file.
        """
        try:
            tables = json.loads(path.read_text(encoding="utf-8-sig"))
            words = {str(word): int(number) for word, number in tables["word2idx"].items()}
            names = {int(number): word for number, word in tables.get("idx2word", {}).items()}
            valid = UNKNOWN in words and words.get(PAD) == 0
            valid = valid and sorted(words.values()) == list(range(len(words)))
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is missing: put the vocabulary back, a JSON file with a word2idx table."
            ) from error
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise UserError(
                f"{path} is not a vocabulary: expected JSON with a word2idx table."
            ) from error
        if not valid:
            raise UserError(
                f"{path} is not a usable vocabulary: its word2idx table must number the words "
                f"0, 1, 2, ... with {PAD} = 0 and {UNKNOWN}."
            )
        if names and names != {number: word for word, number in words.items()}:
            raise UserError(
                f"{path} is damaged: its tables word2idx and idx2word disagree; put a copy back."
            )
        return cls(words)

    def to_json(self) -> str:
        """The JSON text that :meth:`load` and the SCAN family read."""
        names = {str(number): word for word, number in self.words.items()}
        table = {"word2idx": self.words, "idx2word": names, "idx": len(self.words)}
        return json.dumps(table, ensure_ascii=False, indent=0)

    @property
    def digest(self) -> str:
        """SHA-256 of the words in the order of their numbers, in hex."""
        ordered = sorted(self.words, key=self.words.__getitem__)
        return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()

    def encode(self, caption: str) -> list[int]:
        """Numbers of a caption's words; a caption without words is one unknown word."""
        numbers = [self.words.get(word, self._unknown) for word in tokenize(caption)]
        return numbers or [self._unknown]


def pad(captions: Sequence[Sequence[int]], longest: int = 0) -> tuple[Tensor, Tensor]:
    """Stack captions of different lengths.

    Args:
        captions: N of them.
        longest: least L.

    Returns:
        Words (N, L) int64, 0 after the end, and lengths (N,) int64.
    """
    lengths = torch.tensor([len(c) for c in captions], dtype=torch.int64)
    longest = max(longest, int(lengths.max()))
    rows = [[*caption, *[0] * (longest - len(caption))] for caption in captions]
    return torch.tensor(rows, dtype=torch.int64), lengths
