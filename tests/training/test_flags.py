"""Every flag of every command with values that cannot be: one sentence, and nothing is created."""

import dataclasses
import math
import re
import sys

import pytest

from sede_kernels.cli import main
from sede_kernels.training import demo
from sede_kernels.training.config import TrainConfig, check_switches, from_mapping, read_toml
from sede_kernels.training.files import UserError

from .conftest import TINY, read_log, refused

HUGE = "9" * 30
# Flags that switch on what a setting is about, and what is refused of it with which words.
NUMBERS = ("-1", "nan", "inf", "-inf", "1e308")
CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "data": ([], {"": "there is no data set ''", "~nobody/x": "there is no data set '~nobody/x'"}),
    "model": ([], {"vsr": "model must be one of vse, scan, bfan, vsrn, got 'vsr'"}),
    "direction": (["--model=scan"], {"": "direction must be one of t2i, i2t, both, got ''"}),
    "focal": (["--model=bfan"], {"x": "focal must be one of equal, prob"}),
    "relations": (["--model=vsrn"], {"0": "above 0, got 0", "1001": "at most 1000, got 1001"}),
    "smoothing": (["--model=scan"], dict.fromkeys(NUMBERS, "smoothing must be ")),
    "text_embeddings": ([], {"x": "train_x.npy is missing", "../x": "train_../x.npy is missing"}),
    "epochs": ([], {"0": "epochs must be above 0", HUGE: "epochs must be at most 2147483647"}),
    "batch_size": ([], {"-8": "above 0, got -8", HUGE: "batch_size must be at most"}),
    "lr": ([], {**dict.fromkeys(NUMBERS, "lr must be "), "1e5": "lr times weight_decay"}),
    "weight_decay": ([], {**dict.fromkeys(NUMBERS, "weight_decay must "), "1e5": "below 1"}),
    "grad_clip": ([], dict.fromkeys(("0", *NUMBERS[:-1]), "grad_clip must be ")),
    "dim": ([], {"-1": "above 0", HUGE: "at most", "2147483647": "GiB for weights and banks"}),
    "word_dim": ([], {"0": "above 0", HUGE: "at most", "2147483647": "GiB for weights and"}),
    "dropout": ([], dict.fromkeys((*NUMBERS, "1"), "dropout must be from 0 to below 1")),
    "seed": ([], {"-1": "seed must be 0 or more, got -1", HUGE: "seed must be at most"}),
    "loss": ([], {"hinges": "loss must be one of infonce, hinge"}),
    "temperature": ([], dict.fromkeys((*NUMBERS, "1e-7"), "temperature must be ")),
    "margin": (["--loss=hinge"], dict.fromkeys((*NUMBERS, "0"), "margin must be ")),
    "weighting": ([], dict.fromkeys(NUMBERS, "weighting must be ")),
    "bank": ([], {"-1": "0 or more", HUGE: "at most", "2147483647": "bank 2147483647"}),
    "bank_share": (["--bank=9"], dict.fromkeys(NUMBERS, "above 0, at most 1")),
    "bank_keys": (["--bank=9"], {"offline": "bank_keys must be one of momentum, online"}),
    "bank_weight": (["--bank=9"], dict.fromkeys(NUMBERS, "bank_weight must be ")),
    "bank_hardest": (["--bank=9"], {"-1": "0 or more", "10": "at most the 9 slots", HUGE: "most"}),
    "bank_start": (["--bank=9"], {"-1": "0 or more, got -1", HUGE: "at most 2147483647"}),
    "momentum": (["--bank=9"], dict.fromkeys((*NUMBERS, "1"), "from 0 to below 1")),
    "erase": ([], {"middle": "erase must be one of off, low, high"}),
    "erase_rule": (["--erase"], {"median": "one of mean, prob", "topk": "needs erase_threshold"}),
    "erase_threshold": (
        ["--erase", "--erase-rule=quantile"],
        {"2": "must be a quantile from 0 to 1, got 2.0", "-0.1": "from 0 to 1", "nan": "got nan"},
    ),
    "erase_pass": (["--erase"], {"third": "one of replace, train, second"}),
    "erase_weight": (["--erase", "--erase-pass=second"], dict.fromkeys(NUMBERS, "erase_weight ")),
    "patience": ([], {"-1": "patience must be 0 or more", HUGE: "patience must be at most"}),
    "checkpoint_every": ([], {"0": "checkpoint_every must be above 0", HUGE: "at most"}),
    "threads": ([], {"-1": "threads must be 0 or more", "1025": "threads must be at most 1024"}),
    "workers": ([], {"-1": "workers must be 0 or more", "1025": "workers must be at most 1024"}),
    "batch_negatives": ([], {"mine": "batch_negatives must be one of all, rank"}),
    "precision": ([], {"fp16": "precision must be one of fp32, bf16"}),
    "compile": ([], {"yes": "compile must be one of off, on"}),
    "device": ([], dict.fromkeys(("", "meta", "cuda:99", "gpu", "\udcff"), "cannot be used here")),
}


def test_every_setting_has_cases():
    assert set(CASES) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", CASES)
def test_a_setting_that_cannot_be(name, tiny, tmp_path, capfd):
    needs, values = CASES[name]
    flag = f"--{name.replace('_', '-')}"
    base = ["train", "--data=tiny", *TINY, "--out", tmp_path / "runs" / "run"]
    for value, words in values.items():
        said = refused(capfd, *base, *needs, f"{flag}={value}")
        assert words in said, (value, said)
        assert not (tmp_path / "runs").exists(), value


@pytest.mark.parametrize("name", [n for n, f in TrainConfig.__dataclass_fields__.items()
                                  if f.type is not str])  # fmt: skip
def test_text_for_a_number_is_wrong_usage(name, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["train", f"--{name.replace('_', '-')}=1x"])
    assert caught.value.code == 2
    assert "invalid" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--erase-rule=prob"], "--erase-rule does nothing without --erase"),
        (["--erase-threshold=0.5"], "--erase-threshold does nothing without --erase"),
        (["--bank-keys=online"], "--bank-keys does nothing without --bank"),
        (["--bank-start=5", "--bank=0"], "--bank-start does nothing without --bank"),
        (["--erase", "--erase-threshold=0.5"], "erase_rule 'mean' takes no erase_threshold"),
        (["--erase", "--erase-rule=topk", "--erase-threshold=1.5"], "a whole number of regions"),
        (["--erase", "--erase-rule=topk", "--erase-threshold=inf"], "a whole number of regions"),
        (["--erase", "--erase-rule=absolute", "--erase-threshold=inf"], "a finite number"),
        (["--erase", "--erase-rule=relative", "--erase-threshold=1.1"], "a share from 0 to 1"),
        (["--batch-negatives=rank"], "--batch-negatives rank does nothing in one process: start"),
        (["--batch-size=1"], "batch_size 1 has no negatives without a bank"),
        (["--loss=hinge", "--weighting"], "weighting weighs the negatives of InfoNCE"),
        (["--resume=RUN", "--dim=3"], "--resume takes --dim from the run; what may be given"),
        (["--resume=RUN", "--config=a.toml"], "leave out --config and --out"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_flags_that_contradict_each_other(flags, words, tiny, tmp_path, capfd):
    out = [] if "--resume=RUN" in flags else ["--data=tiny", *TINY, "--out", tmp_path / "run"]
    assert words in refused(capfd, "train", *out, *flags)
    assert not (tmp_path / "run").exists()


def test_settings_that_do_nothing_are_fine_where_nobody_gave_them():
    """A module switched off over a file of settings keeps the others of the file."""
    check_switches([], TrainConfig(batch_negatives="rank"))
    assert from_mapping({"bank": 0, "bank_share": 0.5, "erase_rule": "prob"}, "file").bank == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 3.5", "epochs must be an int, got 3.5"),
        ("epochs = true", "epochs must be an int, got True"),
        ("epochs = 1979-05-27", "epochs must be an int, got datetime.date"),
        ("seed = [1]", r"seed must be an int, got \[1\]"),
        ("data = 3", "data must be text, got 3"),
        ('data = "a\\u0000b"', "there is no data set"),
        ('device = "\\u0000"', "cannot be used here"),
        ("[train]\nepochs = 3", "unknown setting 'train'"),
        ("batch-size = 3\nbatch_size = 4", "has the setting 'batch_size' twice"),
        ("lr = inf", "lr must be finite, got inf"),
        ("lr = nan", "lr must be above 0, got nan"),
        (f"lr = {'9' * 400}", "lr must be finite, got inf"),
        (f"dim = {'9' * 400}", "dim must be at most 2147483647"),
        (f"dim = {'9' * 5000}", "is not TOML"),
        ("\ufeffepochs = 0", "epochs must be above 0, got 0"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("=", "is not TOML"),
    ],
    ids=lambda text: text[:24].replace("\n", ",").replace("\ufeff", "BOM"),
)
def test_a_file_of_settings_that_cannot_be(text, words, tiny, tmp_path, capfd):
    path = tmp_path / "run.toml"
    path.write_text(text)
    data = [] if text.startswith("data") else ["--data=tiny"]
    said = refused(capfd, "train", "--config", path, *data, "--out", tmp_path / "run")
    assert re.search(words, said), said
    assert not (tmp_path / "run").exists()


def test_paths_that_cannot_be(tiny, tmp_path, capfd):
    file = tmp_path / "file"
    file.write_text("x")
    base = ["train", "--data=tiny", *TINY]
    for out in (file, file / "below"):
        said = refused(capfd, *base, "--out", out)
        assert f"a file stands where a folder is expected at {out}" in said
    assert "File name too long" in refused(capfd, *base, "--out", "x" * 300)
    assert "a folder stands where a file" in refused(capfd, *base, "--config", tmp_path)
    assert "is not a run" in refused(capfd, "train", "--resume", file)
    for command in (["train", "--out="], ["train", "--resume="], ["eval", ""], ["demo", "--out="],
                    ["prepare", "icons", "--out="], ["ablate", "--settings="]):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        assert "expected a path, got an empty text" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["demo", "--limit=0"], "--limit must be at least 30 images, got 0"),
        (["demo", f"--limit={HUGE}"], "--limit must be at most 1000000000 images"),
        (["demo", "--epochs=0"], "epochs must be above 0, got 0"),
        (["prepare", "icons", "--limit=-1"], "--limit must be at least 30 images, got -1"),
        (["prepare", "icons", f"--limit={HUGE}"], "--limit must be at most 1000000000 images"),
        (["prepare", ""], "there is no set '' to prepare"),
    ],
    ids=" ".join,
)
def test_wrong_sizes_of_sets(words, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SEDE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(demo, "prepare", None)  # nothing is prepared before the settings are read
    assert sentence in refused(capfd, *words)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("backend", ["junk", "cuda", "triton"])
def test_a_backend_that_cannot_be(backend, tiny, tmp_path, monkeypatch, capfd):
    from sede_kernels import available_backends

    if available_backends().get(backend, "no such backend") is None:
        pytest.skip(f"{backend} can be used here")
    assert main(["train", "--data=tiny", *TINY, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("SEDE_BACKEND", backend)
    said = refused(capfd, "train", "--data=tiny", *TINY, "--out", tmp_path / "run")
    assert "SEDE_BACKEND" in said and "unset it" in said
    assert not (tmp_path / "run").exists()
    assert "SEDE_BACKEND" in refused(capfd, "eval", tmp_path / "whole")
    assert "SEDE_BACKEND" in refused(capfd, "train", "--resume", tmp_path / "whole")
    assert main(["info"]) == 0
    said = capfd.readouterr().out
    assert ("there is no such backend" in said) == (backend == "junk")


def test_extremes_that_can_be(tiny, tmp_path):
    """The ends of the ranges train: finite losses, and a dropout of almost 1 keeps an element."""
    for number, flags in enumerate((
        ["--dropout=0.999"], ["--temperature=1e-6"], ["--temperature=1e6", "--weighting=1e6"],
        ["--model=scan", "--smoothing=1e6"], ["--lr=1e-30", "--grad-clip=1e308"],
        ["--bank=1", "--bank-share=1e-9", "--momentum=0"], ["--dim=1", "--word-dim=1"],
        ["--model=vsrn", "--batch-size=1", "--bank=8"], ["--batch-size=2147483647"],
        ["--loss=hinge", "--margin=1e6"], ["--seed=9223372036854775807"],
    )):  # fmt: skip
        out = tmp_path / str(number)
        assert main(["train", "--data=tiny", *TINY, *flags, "--out", str(out)]) == 0, flags
        (line,) = read_log(out)
        assert math.isfinite(line["loss"]), flags


def test_bounds_hold_for_dataclass_values_too():
    with pytest.raises(UserError, match="seed must be at most 9223372036854775807"):
        TrainConfig(seed=2**63)
    assert TrainConfig(seed=2**63 - 1, grad_clip=1e300).grad_clip == 1e300


def test_without_a_reader_of_toml_the_error_names_it(monkeypatch, tmp_path):
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="run `pip install tomli`"):
        read_toml(tmp_path / "settings.toml")
