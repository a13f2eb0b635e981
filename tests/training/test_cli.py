"""What the ``sede`` command says, and what it leaves behind when it fails."""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from sede_kernels import whole_file
from sede_kernels.cli import main
from sede_kernels.training import files
from sede_kernels.training.config import TrainConfig, from_mapping
from sede_kernels.training.data.text import pad
from sede_kernels.training.files import UserError
from sede_kernels.training.run import load_best

from .conftest import LIMIT, TINY, write_family_folder
from .test_resume import command


def fails(capfd, *words: object) -> str:
    """Run a command that fails with status 1; returns its one sentence."""
    assert main([str(word) for word in words]) == 1
    said = capfd.readouterr().err.strip()
    assert said.startswith("sede: ")
    assert "\n" not in said
    return said


def test_unknown_names(capfd, tmp_path):
    assert "no set 'icosn' to prepare: choose from icons, emoji" in fails(capfd, "prepare", "icosn")
    assert "at least 30 images, got 3" in fails(capfd, "prepare", "icons", "--limit", 3)
    assert "run `sede prepare icons`" in fails(capfd, "train", "--data", "icons")
    said = fails(capfd, "train", "--data", "emoji_400_grouped")
    assert "run `sede prepare emoji --limit 400`" in said
    assert "there is no data set 'nowhere'" in fails(capfd, "train", "--data", "nowhere")
    said = fails(capfd, "train", "--model", "vsr")
    assert "model must be one of vse, scan, bfan, vsrn, got 'vsr'" in said
    assert "erase must be one of off, low, high" in fails(capfd, "train", "--erase", "middle")
    assert "is not a run" in fails(capfd, "eval", tmp_path)
    assert "is not a run" in fails(capfd, "train", "--resume", tmp_path)
    said = fails(capfd, "train", "--resume", tmp_path, "--batch-size", 3)
    assert "--resume takes --batch-size from the run; what may be given with it is --data" in said


@pytest.mark.parametrize(
    "words", [["nothing"], [], ["train", "--epochs", "many"]], ids=["unknown", "none", "value"]
)
def test_wrong_usage_exits_with_2(words, capfd):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: sede" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"temperature": -0.1}, "temperature must be above 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"bank": -1}, "bank must be 0 or more, got -1"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"epochs": "3"}, "epochs must be an int, got '3'"),
        ({"epochs": True}, "epochs must be an int, got True"),
        ({"batchsize": 3}, "unknown setting 'batchsize'; did you mean batch_size"),
        ({"batch_size": 1}, "batch_size 1 has no negatives without a bank"),
        ({"loss": "hinge", "weighting": 2}, "weighting weighs the negatives of InfoNCE"),
        ({"erase": "low", "erase_rule": "topk"}, "needs erase_threshold"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_settings_are_checked(values, message):
    with pytest.raises(UserError, match=message):
        from_mapping(values, "here")


def test_flags_win_over_toml_and_bare_flags_have_a_value(icons, tmp_path, capfd):
    toml = tmp_path / "run.toml"
    toml.write_text('data = "icons_100"\nepochs = 7\nbatch-size = 16\ndim = 8\nmodel = "vse"\n')
    out = tmp_path / "run"
    words = ["train", "--config", str(toml), "--epochs", "1", "--out", str(out), "--bank"]
    assert main([*words, "--weighting", "--erase"]) == 0
    said = capfd.readouterr().out
    assert "R@1" in said
    assert str(out) in said
    config = TrainConfig(**json.loads((out / "config.json").read_text()))
    assert (config.epochs, config.batch_size, config.dim) == (1, 16, 8)
    assert (config.bank, config.weighting, config.erase) == (2048, 5.0, "low")

    page = tmp_path / "page.png"
    assert main(["eval", str(out), "--folds", "2"]) == 0
    assert main(["eval", str(out), "--visualize", str(page)]) == 0
    assert "chance" in capfd.readouterr().out
    assert page.read_bytes().startswith(b"\x89PNG")
    assert "--folds must divide the 20 images" in fails(capfd, "eval", out, "--folds", 3)
    assert "has no part 'tset'" in fails(capfd, "eval", out, "--part", "tset")
    other = write_family_folder(tmp_path / "f30k", width=8)
    assert "expects regions of 320 numbers" in fails(capfd, "eval", out, "--data", other)
    (out / "best.pt").write_bytes(b"junk")
    assert "best.pt is damaged" in fails(capfd, "eval", out)


def test_bad_toml(capfd, tmp_path):
    (tmp_path / "a.toml").write_text("epochs = ")
    assert "a.toml is not TOML" in fails(capfd, "train", "--config", tmp_path / "a.toml")
    assert "no settings file" in fails(capfd, "train", "--config", tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("epoch = 3")
    assert "did you mean epochs" in fails(capfd, "train", "--config", tmp_path / "c.toml")


def test_family_folder_trains_and_scores(tmp_path, capfd):
    folder = write_family_folder(tmp_path / "f30k_precomp", width=16)
    out = tmp_path / "run"
    words = ["train", "--data", str(folder), "--out", str(out), "--epochs", "1", "--dim", "8"]
    assert main([*words, "--model", "scan", "--bank", "16"]) == 0
    assert main(["eval", str(out), "--folds", "2"]) == 0
    assert "6 images, 30 captions" in capfd.readouterr().out
    assert "features but no pictures" in fails(
        capfd, "eval", out, "--visualize", tmp_path / "p.png"
    )


def test_coco_layout_scores_testall_whole_and_by_folds(tmp_path, capfd):
    """As COCO's folders: ``testall`` holds each image five times, once a caption; 1K is 5 folds."""
    folder = write_family_folder(tmp_path / "coco_precomp", images=20, regions=4, width=8)
    rng = np.random.default_rng(3)
    features = rng.standard_normal((20, 4, 8), dtype=np.float32)
    np.save(folder / "testall_ims.npy", np.repeat(features, 5, axis=0))
    captions = [f"A dog number {i} of {k}." for i in range(20) for k in range(5)]
    (folder / "testall_caps.txt").write_text("\n".join(captions) + "\n")
    (folder / "testall_ids.txt").write_text("".join(f"{9000 - i}\n" for i in range(100)))
    run = tmp_path / "run"
    words = ["--model", "vse", "--epochs", "1", "--dim", "16", "--word-dim", "8", "--batch-size"]
    assert main(["train", "--data", str(folder), *words, "40", "--out", str(run)]) == 0

    def recall_at_1(*more: str) -> tuple[float, ...]:
        capfd.readouterr()
        assert main(["eval", str(run), "--part", "testall", *more]) == 0
        text = capfd.readouterr().out
        assert "testall: 20 images, 100 captions" in text
        (line,) = [line for line in text.splitlines() if line.startswith("vse ")]
        numbers = re.findall(r"\d+\.\d", line)
        return float(numbers[0]), float(numbers[3])

    _, model, vocabulary = load_best(run)
    model.eval()
    with torch.inference_mode():
        images = model.image_encoder(torch.from_numpy(features)).vector
        texts = [model.text_encoder(*pad([vocabulary.encode(c)])).vector for c in captions]
    scores = (images @ torch.cat(texts).t()).numpy()

    def by_hand(block: np.ndarray) -> tuple[float, float]:
        owner = np.arange(block.shape[1]) // 5
        found = (owner[block.argmax(1)] == np.arange(len(block))).mean()
        return 100 * found, 100 * (block.argmax(0) == owner).mean()

    assert recall_at_1() == pytest.approx(by_hand(scores), abs=0.051)
    folds = [by_hand(scores[4 * f : 4 * f + 4, 20 * f : 20 * f + 20]) for f in range(5)]
    assert recall_at_1("--folds", "5") == pytest.approx(np.mean(folds, axis=0), abs=0.051)


def test_broken_folder_is_found_before_training(icons, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(icons, copy)
    (copy / "dev_ims.npy").write_bytes((copy / "dev_ims.npy").read_bytes()[:-1])
    said = fails(capfd, "train", "--data", copy, "--out", tmp_path / "run")
    assert "dev_ims.npy has" in said
    assert "cut short" in said
    assert not (tmp_path / "run").exists()


def limited(megabytes: float):
    """Files may not grow past a size: the same refusal as a full disk, without filling one."""
    size = int(megabytes * 2**20)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk_in_prepare_keeps_the_cache_only(icons_home, tmp_path, environment):
    shutil.copytree(icons_home / "cache", tmp_path / "cache")
    environment["SEDE_DATA"] = str(tmp_path)
    words = command("prepare", "icons", "--limit", LIMIT)
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, preexec_fn=limited(1), check=False
    )
    assert done.returncode == 1
    assert "size limit of this shell" in done.stderr
    assert "nothing half written was kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_full_disk_in_training_keeps_the_last_checkpoint(icons, tmp_path, environment):
    out = tmp_path / "run"
    small = ["--data", f"icons_{LIMIT}", "--epochs", "1", "--dim", "8", "--batch-size", "16"]
    assert main(["train", "--out", str(out), *small]) == 0
    os.unlink(out / "test.json")
    before = (out / "last.pt").read_bytes()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "epochs": 2}))
    done = subprocess.run(
        command("train", "--resume", out),
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limited(len(before) / 2**20 / 2),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "go on" in done.stderr or "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "last.pt").read_bytes() == before
    assert not list(out.glob(".*.tmp"))


def test_errno_of_a_full_disk_survives_numpy_and_torch(tmp_path, monkeypatch):
    """Both writers lose errno when they write to a file themselves."""
    import errno

    import numpy as np
    import torch

    class Full:
        def __init__(self, path, mode):
            self._file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_file, "open", Full, raising=False)
    target = tmp_path / "file"
    target.write_bytes(b"old")
    for write in (
        lambda: files.write_array(target, np.zeros(9)),
        lambda: files.write_torch(target, {"a": torch.zeros(9)}),
    ):
        with pytest.raises(OSError, match="No space") as caught:
            write()
        assert files.describe_os_error(caught.value).startswith(f"the disk is full at {target}")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bench_of_a_source_folder_says_what_to_do(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-c", HIDE_BENCHMARKS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "python -m benchmarks.run" in done.stderr


HIDE_BENCHMARKS = """
import sys
sys.modules["sede_kernels._bench"] = None
from sede_kernels.cli import main
sys.exit(main(["bench"]))
"""


def test_words_that_the_terminal_cannot_show_end_nothing(tiny, tmp_path, monkeypatch):
    """On an ASCII terminal the command prints what it can."""
    words = ["sede", "train", "--data=tiny", *TINY, "--out", str(tmp_path / "l\xe4uft")]
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdout", screen)
    assert main() == 0
    screen.flush()
    assert rb"l\xe4uft; look at its curves" in screen.buffer.getvalue()


def test_a_folder_whose_name_is_no_text(tiny, tmp_path, capfd):
    out = tmp_path / "run\udcff"
    assert "is not UTF-8" in fails(capfd, "train", "--data=tiny", *TINY, "--out", out)
    assert not out.exists()


@pytest.mark.slow
def test_demo_on_a_handful_of_icons(icons_home, tmp_path, monkeypatch, capfd):
    from PIL import Image

    monkeypatch.setenv("SEDE_DATA", str(icons_home))
    words = ["demo", "--out", str(tmp_path), "--limit", str(LIMIT), "--epochs", "2"]
    assert main(words) == 0
    said = capfd.readouterr().out
    for piece in ("chance", "base", "three modules", "R@10", "What next", "search_results.png"):
        assert piece in said
    page = Image.open(tmp_path / "search_results.png")
    green = sum(n for n, colour in page.getcolors(1 << 24) if colour == (26, 152, 80))
    assert green > 12 * 500, "each of the twelve searches frames its right icon"
    assert main(words) == 0, "the second demo goes on with what is there"
    assert "has this run already" in capfd.readouterr().out


def test_streams_that_the_shell_closed_do_not_end_a_run(tiny, tmp_path, monkeypatch):
    """``>&- 2>&-``: Python has None in their place."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    out = tmp_path / "run"
    status = main(["train", "--data", str(tiny), "--out", str(out), *TINY])
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert status == 0
    assert (out / "test.json").is_file()
