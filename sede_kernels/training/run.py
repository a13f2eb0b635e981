"""A run's folder, data and model, built the same way for training and for evaluation."""

import json
from dataclasses import dataclass
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
from sede_kernels.training.models import MODELS, RetrievalModel, Sizes


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


def build_model(
    config: TrainConfig, features: int, words: int, sentence: int = 0
) -> RetrievalModel:
    """The model of the settings, for regions, a vocabulary and sentence embeddings of some size."""
    kind = MODELS[config.model]
    sizes = Sizes(features, words, sentence, config.dim, config.word_dim, config.dropout)
    options = {name: getattr(config, name) for name in kind.options}
    return kind(sizes, config.erasing, **options).to(config.device)


def read_config(out: Path) -> TrainConfig:
    """Settings of a run.

    Raises:
        UserError: not a run's folder.
    """
    path = out / "config.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{out} is not a run of `sede train`: it has no config.json.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    return from_mapping(values, str(path))


def load_best(out: Path) -> tuple[TrainConfig, RetrievalModel, Vocabulary]:
    """The model that did best on dev, ready for evaluation."""
    config = read_config(out)
    vocabulary = Vocabulary.load(out / "vocab.json")
    state = checkpoint.load(out / "best.pt")
    model = build_model(
        config, int(state["features"]), len(vocabulary), int(state.get("sentence", 0))
    )
    model.load_state_dict(state["model"])
    return config, model.eval(), vocabulary


def choose_device(name: str) -> None:
    """Refuse a device this machine does not have."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}.") from error


def multiplies_bf16(device: str) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
