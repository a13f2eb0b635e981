"""A run's folder, data and model, built the same way for training and for evaluation."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sede_kernels.training import checkpoint
from sede_kernels.training.config import TrainConfig, from_mapping
from sede_kernels.training.data.precomp import (
    Part,
    check_folder,
    find_folder,
    load_part,
    load_vocabulary,
)
from sede_kernels.training.data.text import Vocabulary
from sede_kernels.training.files import UserError, data_home
from sede_kernels.training.limits import (
    check_backend,
    check_memory,
    choose_device,
    device_problem,
    enough_memory,
    make_model,
)
from sede_kernels.training.models import RetrievalModel
from sede_kernels.training.ranks import here


@dataclass
class Corpus:
    """Parts of a data set with their captions as numbers.

    Attributes:
        folder: where it lies.
        vocabulary: of the training captions.
        parts: by name.
        words: numbers of each caption's words, by part.
    """

    folder: Path
    vocabulary: Vocabulary
    parts: dict[str, Part]
    words: dict[str, list[list[int]]]

    @property
    def longest(self) -> int:
        """Words of the longest training caption."""
        return max(len(words) for words in self.words["train"])


def load_corpus(
    data: str,
    names: tuple[str, ...],
    vocabulary: Vocabulary | None = None,
    text_embeddings: str = "",
) -> Corpus:
    """Open and check the parts of a data set; every problem shows before training starts."""
    folder = find_folder(data, data_home())
    check_folder(folder)
    vocabulary = load_vocabulary(folder) if vocabulary is None else vocabulary
    parts = {name: load_part(folder, name, text_embeddings) for name in names}
    shapes = {name: part.features.shape[1:] for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"the parts of {folder} differ in (regions, numbers): {shapes}.")
    widths = {n: p.sentences.shape[1] for n, p in parts.items() if p.sentences is not None}
    if len(set(widths.values())) > 1:
        raise UserError(f"the sentence embeddings of {folder} differ in width: {widths}.")
    words = {n: [vocabulary.encode(c) for c in part.captions] for n, part in parts.items()}
    return Corpus(folder, vocabulary, parts, words)


def check_run(config: TrainConfig, corpus: Corpus) -> None:
    """Refuse a run that this machine cannot hold, before anything is built.

    Raises:
        UserError: backend, device or memory; one sentence.
    """
    check_backend()
    choose_device(config.device)
    part = corpus.parts["train"]
    check_memory(
        config,
        features=part.features.shape[2],
        words=len(corpus.vocabulary),
        sentence=0 if part.sentences is None else part.sentences.shape[1],
        regions=part.features.shape[1],
        longest=corpus.longest,
        ranks=here().world,
    )


def build_model(
    config: TrainConfig, features: int, words: int, sentence: int = 0
) -> RetrievalModel:
    """The model of the settings, for regions, a vocabulary and sentence embeddings of some size."""
    return make_model(config, features, words, sentence).to(config.device)


def read_config(out: Path) -> TrainConfig:
    """Settings of a run.

    Raises:
        UserError: not a run's folder.
    """
    path = out / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{out} is not a run of `sede train`: it has no config.json.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).rstrip('.')}): put a copy of it back, or train again "
            "with another --out."
        ) from error
    return from_mapping(values, str(path))


def load_best(out: Path) -> tuple[TrainConfig, RetrievalModel, Vocabulary]:
    """The model that did best on dev, ready for evaluation, on the run's device or else the CPU.

    Raises:
        UserError: not a run, or its files are missing, damaged or do not fit each other.
    """
    config = read_config(out)
    problem = device_problem(config.device)
    if problem is not None:
        print(f"{problem}: scoring on the CPU.", file=sys.stderr)
        config = replace(config, device="cpu")
    vocabulary = Vocabulary.load(out / "vocab.json")
    path = out / "best.pt"
    state = checkpoint.load(path, ("model", "features"))
    features, sentence = state["features"], state.get("sentence", 0)
    if not all(isinstance(size, int) for size in (features, sentence)):
        raise UserError(checkpoint.misfit(path, "its sizes are no numbers"))
    if state.get("words", vocabulary.digest) != vocabulary.digest:  # 0.1.0 wrote none
        raise UserError(
            f"{out / 'vocab.json'} numbers other words than {path} was trained with: put the "
            "vocabulary of this run back."
        )
    with enough_memory():
        model = build_model(config, features, len(vocabulary), sentence)
    checkpoint.fill(model, state["model"], path, "model")
    return config, model.eval(), vocabulary


def multiplies_bf16(device: str) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
