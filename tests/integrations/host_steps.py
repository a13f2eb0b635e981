"""A few training steps of a host's own code, in a process of its own; prints JSON.

``python -m tests.integrations.host_steps NAME FOLDER``; ``check_recipes.py`` calls it. The losses
are those that the host itself logs or returns. Data are random, encoders small.
"""

import copy
import importlib
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.peers.torchvision import load_torchvision

ROWS, WIDTH, STEPS, RESUMED = 6, 8, 4, 3


class Run(NamedTuple):
    """A host that is built and can take steps.

    Attributes:
        step: number of the step -> the loss that the host reports.
        state: everything that the host saves, copied.
        load: of such a state.
    """

    step: Callable[[int], float]
    state: Callable[[], Any]
    load: Callable[[Any], Any]


class Log:
    """The host's log collector, which must get every loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def update(self, name: str, value: float, count: int = 0) -> None:
        if name in ("Le", "Loss"):
            self.losses.append(float(value))


def captions(generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Words (B, L) and their counts, longest first."""
    lengths = sorted(torch.randint(2, 6, (ROWS,), generator=generator).tolist(), reverse=True)
    return torch.randint(1, 20, (ROWS, lengths[0]), generator=generator), lengths


def retrieval(kind: str, shape: tuple[int, ...], **options: Any) -> Run:
    """SCAN and its family: ``model.py`` with a class that is no module."""
    module = importlib.import_module("model")
    settings = {
        "grad_clip": 2.0,
        "data_name": "f30k_precomp",
        "img_dim": 12,
        "embed_size": WIDTH,
        "vocab_size": 20,
        "word_dim": 10,
        "num_layers": 1,
        "margin": 0.2,
        "max_violation": True,
        "learning_rate": 0.01,
        **options,
    }
    torch.manual_seed(0)
    model = getattr(module, kind)(SimpleNamespace(**settings))
    model.logger = Log()

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(ROWS, *shape, generator=generator)
        words, lengths = captions(generator)
        ids = [5 * (ROWS * number + row) for row in range(ROWS)]
        torch.manual_seed(number)
        model.train_start()
        model.train_emb(images, words, lengths, ids)
        return model.logger.losses[-1]

    def state() -> Any:
        return copy.deepcopy((model.state_dict(), model.optimizer.state_dict()))

    def load(saved: Any) -> None:
        model.load_state_dict(saved[0])
        model.optimizer.load_state_dict(saved[1])

    return Run(step, state, load)


FRAGMENTS = {"precomp_enc_type": "basic", "no_imgnorm": False, "no_txtnorm": False}


def scan() -> Run:
    return retrieval(
        "SCAN",
        (36, 12),
        **FRAGMENTS,
        bi_gru=False,
        cross_attn="t2i",
        raw_feature_norm="clipped_l2norm",
        agg_func="LogSumExp",
        lambda_lse=6.0,
        lambda_softmax=9.0,
    )


def bfan() -> Run:
    return retrieval("BFAN", (36, 12), **FRAGMENTS, focal_type="equal", lambda_softmax=20.0)


def sgraf() -> Run:
    return retrieval(
        "SGRAF", (36, 12), **FRAGMENTS, bi_gru=False, sim_dim=6, module_name="SGR", sgr_step=2
    )


def vsepp() -> Run:
    return retrieval(
        "VSE",
        (12,),
        finetune=False,
        cnn_type="",
        use_abs=False,
        no_imgnorm=False,
        measure="cosine",
    )


class Vision(nn.Module):
    """Stands for a vision transformer: (B, 3, 4, 4) images to (B, 5, W)."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 5 * WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1)).unflatten(1, (5, WIDTH))


class Text(nn.Module):
    """Stands for BERT: ids, or the output of an earlier call, with or without a picture."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH)
        self.embed, self.mix = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, WIDTH)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "Text":
        return cls()

    def forward(
        self,
        input_ids: Tensor | None = None,
        encoder_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> SimpleNamespace:
        found = self.embed(input_ids) if encoder_embeds is None else encoder_embeds
        found = found.mean(dim=1, keepdim=True) + found
        if encoder_hidden_states is not None:
            found = found + encoder_hidden_states.mean(dim=1, keepdim=True)
        return SimpleNamespace(last_hidden_state=torch.tanh(self.mix(found)))


class Config:
    """Stands for BERT's configuration."""

    @classmethod
    def from_json_file(cls, _: str) -> "Config":
        return cls()


def stand_in(name: str, **members: Any) -> None:
    """A module that the host imports and that this run does not have."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def trained(model: nn.Module, call: Callable[[int], Tensor]) -> Run:
    """A host that is one module. The first two steps only fill the queue."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def step(number: int) -> float:
        torch.manual_seed(number)
        loss = call(number)
        optimizer.zero_grad()
        loss.backward()
        if number >= 2:
            optimizer.step()
        return loss.item()

    return Run(step, lambda: copy.deepcopy(model.state_dict()), model.load_state_dict)


def pairs(number: int) -> tuple[Tensor, SimpleNamespace, Tensor]:
    """Images, texts, and ids of which some come again in the next batches."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(ROWS, 3, 4, 4, generator=generator)
    ids = torch.randint(0, 30, (ROWS, 4), generator=generator)
    text = SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
    text.to = lambda device: text
    return images, text, torch.arange(ROWS) + 4 * number


def albef(distill: bool = True) -> Run:
    stand_in("models.vit", VisionTransformer=Vision)
    stand_in("models.xbert", BertConfig=Config, BertModel=Text)
    module = importlib.import_module("models.model_retrieval")
    config = {
        "distill": distill,
        "embed_dim": WIDTH,
        "vision_width": WIDTH,
        "image_res": 4,
        "bert_config": "",
        "temp": 0.07,
        "queue_size": 2 * ROWS,
        "momentum": 0.995,
    }
    torch.manual_seed(0)
    model = module.ALBEF("", None, config)

    def call(number: int) -> Tensor:
        images, text, idx = pairs(number)
        return sum(model(images, text, 0.4, idx))

    return trained(model, call)


def blip(all_ranks: bool = True) -> Run:
    stand_in("models.med", BertConfig=Config, BertModel=Text)

    class Tokenizer:
        enc_token_id = 3

        def __call__(self, caption: SimpleNamespace, **_: Any) -> SimpleNamespace:
            return caption

    stand_in(
        "models.blip",
        create_vit=lambda *_: (Vision(), WIDTH),
        init_tokenizer=Tokenizer,
        load_checkpoint=None,
    )
    module = importlib.import_module("models.blip_retrieval")
    if not hasattr(module, "concat_all_gather"):  # the host's file forgets to import both
        module.concat_all_gather = module.all_gather_with_grad = lambda rows: rows
    torch.manual_seed(0)
    model = module.BLIP_Retrieval(
        embed_dim=WIDTH, queue_size=2 * ROWS, negative_all_rank=all_ranks, image_size=4
    )

    def call(number: int) -> Tensor:
        images, text, idx = pairs(number)
        return sum(model(images, text, 0.4, idx))

    return trained(model, call)


def moco() -> Run:
    builder = importlib.import_module("moco.builder")
    main = importlib.import_module("main_moco")

    class Encoder(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.fc = nn.Linear(48, num_classes)

        def forward(self, image: Tensor) -> Tensor:
            return self.fc(image.flatten(1))

    torch.manual_seed(0)
    model = builder.MoCo(Encoder, dim=WIDTH, K=2 * ROWS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    shown: list[str] = []
    main.ProgressMeter.display = lambda self, batch: shown.extend(str(m) for m in self.meters)
    args = SimpleNamespace(gpu=None, print_freq=1)

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        first = torch.randn(ROWS, 3, 4, 4, generator=generator)
        views = [first, first + 0.3 * torch.randn(first.shape, generator=generator)]
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if number >= 2 else 0.0
        torch.manual_seed(number)
        shown.clear()
        # The host's loop prints the loss and both accuracies: their digits are compared.
        main.train([(views, None)], model, nn.CrossEntropyLoss(), optimizer, 0, args)
        texts = {text.split()[0]: float(text.split()[1]) for text in shown}
        assert {"Loss", "Acc@1", "Acc@5"} <= texts.keys()
        return texts["Loss"] + 1e-3 * texts["Acc@1"] + 1e-5 * texts["Acc@5"]

    return Run(step, lambda: copy.deepcopy(model.state_dict()), model.load_state_dict)


HOSTS: dict[str, Callable[[], Run]] = {
    "SCAN": scan,
    "BFAN": bfan,
    "SGRAF": sgraf,
    "vsepp": vsepp,
    "ALBEF": albef,
    "ALBEF-no-distillation": lambda: albef(distill=False),
    "BLIP": blip,
    "BLIP-one-rank": lambda: blip(all_ranks=False),
    "moco": moco,
}


def differences(first: Any, second: Any) -> Iterator[str]:
    """Tensors of two states that are not the same bit for bit."""
    if isinstance(first, Tensor):
        if not torch.equal(first, second):
            yield "tensor"
    elif isinstance(first, dict):
        for key in first:
            for inner in differences(first[key], second[key]):
                yield f"{key}.{inner}"
    elif isinstance(first, tuple | list):
        for left, right in zip(first, second, strict=True):
            yield from differences(left, right)


def main(name: str, folder: str) -> None:
    load_torchvision()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # Adam would make much of a rounding
    sys.path.insert(0, folder)
    os.chdir(folder)
    with tempfile.TemporaryDirectory() as meeting:
        dist.init_process_group("gloo", f"file://{meeting}/meet", rank=0, world_size=1)
        run = HOSTS[name]()
        losses = [run.step(number) for number in range(STEPS)]
        saved = run.state()
        straight = [run.step(number) for number in range(STEPS, STEPS + RESUMED)]
        end = run.state()
        again = HOSTS[name]()
        again.load(saved)
        resumed = [again.step(number) for number in range(STEPS, STEPS + RESUMED)]
        found = {
            "losses": losses + straight,
            "resumed": resumed == straight and not list(differences(end, again.state())),
        }
        dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
