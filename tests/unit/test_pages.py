"""The pages that people read: links, examples, names, flags and the notebook."""

import argparse
import doctest
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

import sede_kernels
from sede_kernels.training import demo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "records/**/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def helper(name: str) -> ModuleType:
    """A module of the docs' own tools."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_sphinx" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str) -> list[str]:
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [code for name, code in found if name == language]


def anchors(path: Path) -> set[str]:
    """As GitHub and MyST make them of the headings."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "records" in target.parts and not (ROOT / "records" / "README.md").exists():
            continue  # a source archive leaves most records out
        assert target.exists(), link
        if page.name == "contributing.md":  # its text is that of CONTRIBUTING.md
            continue
        if anchor and target.suffix == ".md":
            included = ROOT / "CONTRIBUTING.md" if target.name == "contributing.md" else target
            assert anchor in anchors(included), link


def uneven(text: str) -> list[str]:
    """Rows of tables with more cells than their head, or fewer."""
    found, head = [], None
    for line in FENCE.sub("", text).splitlines():
        cells = None
        if line.startswith("|"):
            bare = re.sub(r"`[^`]*`", "", line.replace(r"\|", ""))
            cells = bare.count("|")
            if head not in (None, cells):
                found.append(line)
        head = cells if head is None or cells is None else head
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_row_of_a_table_has_the_cells_of_its_head(page: Path) -> None:
    assert uneven(page.read_text(encoding="utf-8")) == []


def test_a_row_with_another_number_of_cells_is_told() -> None:
    rows = ["| a | b |", "| --- | --- |", "| `x|y` | 1 \\| 2 |", "| 1 | 2 | 3 |", "| 1 |"]
    assert uneven("\n".join(["Text.", *rows, "", "| c |", "| --- |"])) == rows[3:]


@pytest.mark.parametrize("name", ["banks", "faq"])
def test_the_examples_of_a_page_run(name: str) -> None:
    page = str(DOCS / f"{name}.md")
    options = doctest.ELLIPSIS
    failed, tried = doctest.testfile(
        page, module_relative=False, encoding="utf-8", optionflags=options
    )
    assert (failed, tried >= 14) == (0, True)


def test_the_blocks_of_the_readme_run() -> None:
    torch.manual_seed(0)
    rows = {
        name: F.normalize(torch.randn(4, 256), dim=1)
        for name in ("query", "positive", "image", "text", "image_key", "text_key")
    }
    rows["image"].requires_grad_()
    names = {
        **rows,
        "torch": torch,
        "F": F,
        "sede": sede_kernels,
        "ids": torch.arange(4),
        "queue": F.normalize(torch.randn(64, 256), dim=1),
        "attention": torch.rand(4, 36),
        "lengths": torch.full((4,), 9),
        "regions": torch.randn(4, 36, 32),
        "words": torch.randn(4, 12, 32),
        "found": torch.randn(4, 3, 12, 32),
        "found_lengths": torch.full((4, 3), 7),
    }
    code = blocks(ROOT / "README.md", "python")
    assert len(code) == 3
    for number, block in enumerate(code):
        exec(compile(block, f"README block {number}", "exec"), names)
    assert names["loss"].ndim == 0 and rows["image"].grad.isfinite().all()
    assert len(names["criterion"].image_bank) == 4
    assert names["values"].shape == (4, 8) and names["scores"].shape == (4, 3)


def test_the_block_of_the_first_hour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tower = torch.nn.Linear(8, 256)

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, *sides: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(F.normalize(self.tower(side), dim=1) for side in sides)

    before = tower.weight.detach().clone()
    rows = [(torch.randn(4, 8), torch.randn(4, 8), [n, n + 1, n + 2, n + 3]) for n in (0, 4)]
    names = {"model": Towers(), "loader": rows}
    (block,) = blocks(DOCS / "first_hour.md", "python")
    exec(compile(block, "first_hour.md", "exec"), names)
    assert len(names["criterion"].image_bank) == len(names["criterion"].text_bank) == 8
    assert not torch.equal(tower.weight, before)
    assert list((tmp_path / "run").iterdir())


def commands(text: str) -> Iterator[str]:
    """Calls of `sede` in blocks, up to a comment, a pipe or the next command."""
    for _, code in FENCE.findall(text):
        for line in code.replace("\\\n", " ").splitlines():
            for call in re.split(r"&&|[|;]", line.partition("#")[0]):
                if found := re.search(r"(?:^|\s)(?:sede|-m sede_kernels) ([a-z].*)", call):
                    yield found[1].strip()


def mentions(text: str) -> Iterator[str]:
    """Calls of `sede` with a flag, perhaps without its value, in the text between the blocks."""
    for call in re.findall(
        r"`(?:\w+ [^`]*-m sede_kernels|sede) ([a-z][^`]*)`", FENCE.sub("", text)
    ):
        if "--" in call and "|" not in call:
            yield " ".join(call.split())


def parser_for(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of a command, and what it reads."""
    tool = helper("command_line")
    for name in sorted(tool.PASSED_ON, reverse=True):
        count = len(name.split())
        if words[:count] == name.split():
            return tool.parser_of(words), words[count:]
    return tool.subparsers(tool.parser_of(words))[words[0]], words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_that_sede_takes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in commands(text):
        parser, words = parser_for(shlex.split(command.replace("...", "").replace("$B", "")))
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"`sede {command}` is refused")
    for command in mentions(text):
        parser, words = parser_for(shlex.split(command.replace("...", "")))
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= {*parser._option_string_actions}, command


def test_commands_are_found_in_blocks_and_in_the_text() -> None:
    text = (
        "```\nX=1 sede a b \\\n --c  # d\npip x && sede demo\n```\n`sede info` `sede e\n --f 2`\n"
    )
    assert list(commands(text)) == ["a b   --c", "demo"]
    assert list(mentions(text)) == ["e --f 2"]
    _, words = parser_for(["bench", "compare", "A", "B"])
    assert words == ["A", "B"]


def test_pages_describe_what_is_there_and_nothing_else() -> None:
    tool = helper("left_over")
    folder = ROOT / "sede_kernels" / "integrations"
    twins = {f"sede_kernels.integrations.{path.stem}" for path in folder.glob("[a-z]*.py")}
    public = {*sede_kernels.__all__, *twins, "sede_kernels.distributed"}
    assert tool.described() | {*tool.names(), *tool.integrations()} == public
    assert {"SEDELoss", "weighted_info_nce", "recall_at_k"} <= tool.described()


def test_the_contents_list_pages_that_are_there() -> None:
    tool = helper("left_over")
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^[\w/-]+$", index, re.MULTILINE)
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md")} - {"index"}
    assert len(listed) == len(set(listed)) >= 18
    assert {*listed, *tool.pages()} == pages


def test_what_has_no_place_yet_comes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = helper("left_over")
    for page, mark in tool.MARKS.items():
        assert (DOCS / f"{page}.md").read_text(encoding="utf-8").count(mark) == 1
    monkeypatch.setattr(tool, "described", lambda: {"SEDELoss"})
    monkeypatch.setattr(sede_kernels, "__all__", ["MemoryBank", "SEDELoss", "bank_lse"])
    text = tool.rest("api/functions")
    assert text.endswith(".. autoclass:: MemoryBank\n.. autofunction:: bank_lse\n```")
    assert ".. automodule:: sede_kernels.integrations.scan\n   :members:" in tool.rest(
        "api/integrations"
    )
    monkeypatch.setattr(tool, "pages", lambda: ["new"])
    assert tool.rest("index") == "```{toctree}\n:caption: Further\n\nnew\n```"
    monkeypatch.setattr(sede_kernels, "__all__", ["SEDELoss"])
    assert tool.rest("api/functions") == ""


def test_the_page_of_the_command_line_has_every_flag() -> None:
    tool = helper("command_line")
    text = tool.commands()
    assert (DOCS / "cli.md").read_text(encoding="utf-8").count(tool.MARK) == 1
    assert set(re.findall(r"^## sede (.+)$", text, re.MULTILINE)) == {
        *tool.COMMANDS,
        *tool.PASSED_ON,
    }
    suite = (ROOT / "benchmarks" / "run.py").read_text(encoding="utf-8")
    parts = {f"bench {word}" for word in re.findall(r'words\[0\] == "(\w+)"', suite)}
    assert set(tool.PASSED_ON) == {"info", "bench"} | parts
    assert set(tool.COMMANDS) | {"bench", "info"} == set(tool.subparsers(tool.parser_of([])))
    train = text.partition("## sede train\n")[2].partition("\n## ")[0]
    for action in tool.subparsers(tool.parser_of(["train"]))["train"]._actions:
        for flag in action.option_strings:
            assert flag in ("-h", "--help") or f"`{flag}" in train, flag
    assert "| `--epochs INT` | passes over the training captions [15] |" in train
    assert "frozen sentence embeddings in `<part>_NAME.npy`, one row per caption [none] |" in train
    assert not re.search(r"<\w+>", re.sub(r"`[^`]*`", "", text)), "a browser takes it for a tag"
    assert f"icons to take [{demo.LIMIT}] |" in text and f"each run [{demo.EPOCHS}] |" in text
    assert "every flag of [sede train](#sede-train)" in text


def test_links_out_of_the_docs_become_absolute() -> None:
    tool = helper("repository_links")
    page = DOCS / "backends.md"
    text = "[a](../csrc/plan.h) [b](../csrc#x) ![c](../d.png) [e](cuda.md) [f](../docs/cuda.md)"
    assert tool.absolute(text, page, ROOT, "https://x") == (
        "[a](https://x/blob/main/csrc/plan.h) [b](https://x/tree/main/csrc#x) ![c](../d.png) "
        "[e](cuda.md) [f](../docs/cuda.md)"
    )
    with pytest.raises(ValueError, match=r"backends\.md: no file \.\./gone\.md"):
        tool.absolute("[a](../gone.md)", page, ROOT, "https://x")


def test_the_notebook_is_the_page_and_was_run() -> None:
    tool = helper("notebook")
    saved = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    page = tool.cells((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    bare = [
        {**cell, "execution_count": None, "outputs": []} if cell["cell_type"] == "code" else cell
        for cell in saved
    ]
    assert bare == page, "run `make notebook`"
    code = [cell for cell in saved if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    printed = "".join(line for c in code for out in c["outputs"] for line in out["text"])
    assert "512 keys in each bank" in printed and "median rank" in printed


def test_a_notebook_keeps_what_its_cells_print(tmp_path: Path) -> None:
    tool = helper("notebook")
    page = (
        "# A\n\n[b](c.md)\n\n```shell\necho one\necho $0\n```\n\n```python\nx = 1\nprint(x)\n```\n"
    )
    cells = tool.cells(page + "```\nnot run\n```\n")
    tool.run(cells, tmp_path)
    kinds = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert kinds[0] == ("markdown", "# A\n\nb")
    assert kinds[1:3] == [("code", "!echo one\n!echo $0"), ("code", "x = 1\nprint(x)")]
    assert [cells[i]["outputs"][0]["text"] for i in (1, 2)] == [["one\n", "bash"], ["1"]]
    assert json.loads(tool.document(cells))["nbformat"] == 4
