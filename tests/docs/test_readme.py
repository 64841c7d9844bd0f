"""What the documents say is so: Python blocks run, commands and files exist, links lead somewhere.

Every Python block runs, each in a process of its own, in an empty folder that has small copies of the `examples` and a
`mask.png`, with tiny checkpoints for "path/to/...", and a service where the address of one is in it. One that cannot
has `<!-- not run: REASON -->` on the line before it.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from enlarger.cli.lazy_verbs import Verbs
from enlarger.cli.main import app
from tests.support import tiny
from tests.support.service import running

ROOT = Path(__file__).parents[2]
CHECKPOINTS = {
    "path/to/sd-x2-latent-upscaler": tiny.x2_folder,
    "path/to/stable-diffusion": tiny.sd1_folder,
    "path/to/sd2-inpainting": tiny.inpaint_folder,
}
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SERVICE = "http://127.0.0.1:8997"
FENCE = re.compile(
    r"^(?P<skip><!-- not run: (?P<reason>\S.*?) -->\s*\n+)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```\s*$",
    re.M | re.S,
)
SHELL = {"bash", "sh", "shell", "console"}
OURS = (
    "examples/",
    "scripts/",
    "docs/",
    "deploy/",
    "tests/",
    "benchmarks/",
    "enlarger/",
    "constraints.txt",
    "pyproject.toml",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    code: str
    skip: str | None

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks(path: Path) -> list[Block]:
    text = path.read_text() if path.is_file() else ""
    return [
        Block(path, text.count("\n", 0, m.start("language")) + 1, m["language"].lower(), m["code"], m["reason"])
        for m in FENCE.finditer(text)
    ]


BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]


def words(block: Block) -> list[list[str]]:
    """The commands of a shell block, split; prompts, comments and output of a console session left out."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line for line in lines if line.startswith("$ ")]
    commands = [part for line in lines for part in re.split(r"&&|;|\|", line.removeprefix("$ "))]
    return [split for command in commands if (split := shlex.split(command, comments=True))]


def unknown_pieces(command: list[str]) -> list[str]:
    """Files of ours that are not there, and verbs and options that `enlarger` does not have."""
    missing = [word for word in command if word.startswith(OURS) and not (ROOT / word).exists()]
    names = [Path(word).name for word in command]
    if "enlarger" not in names:
        return missing
    verb, known = get_command(app), set()
    for word in command[names.index("enlarger") + 1 :]:
        known |= {flag for option in verb.params for flag in (*option.opts, *option.secondary_opts)}
        if word in (inner := getattr(verb, "commands", {})):
            verb = verb.load(word) if isinstance(verb, Verbs) else inner[word]
        elif word.startswith("-") and word.partition("=")[0] not in known | {"-h", "--help"}:
            missing.append(word)
    return missing


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of a service with tiny models."""
    with running(models=("tiny-sd", "tiny-inpaint")) as served:
        yield served.url


def copy_examples(folder: Path) -> None:
    """The example pictures at a quarter of their size: a block shows what is called, not how long it takes."""
    folder.mkdir()
    for path in (ROOT / "examples").glob("*.jpg"):
        with Image.open(path) as picture:
            picture.reduce(4).save(folder / path.name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("python", "py")], ids=str)
def test_python_block_runs(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if block.skip is not None:
        compile(block.code, str(block), "exec")
        pytest.skip(block.skip)
    copy_examples(tmp_path / "examples")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    code = block.code
    for name, folder in CHECKPOINTS.items():
        code = code.replace(name, str(folder())) if name in code else code
    if SERVICE in code:
        code = code.replace(SERVICE, request.getfixturevalue("service"))
    if "mask.png" in code:
        with Image.open(tmp_path / "examples" / "bridge.jpg") as bridge:
            mask = Image.new("L", bridge.size)
        mask.paste(255, (20, 20, 60, 50))
        mask.save(tmp_path / "mask.png")
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, f"{block}:\n{run.stderr}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in SHELL], ids=str)
def test_shell_block_names_what_exists(block: Block) -> None:
    assert [piece for command in words(block) for piece in unknown_pieces(command)] == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.is_file()], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()) + re.findall(r'src="([^"]+)"', path.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_the_readme_is_there() -> None:
    assert blocks(ROOT / "README.md"), "README.md has no code blocks"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("enlarger upscale photo.jpg --by 3 -o large.png", []),
        (".venv/bin/enlarger upscale photo.jpg --bigger", ["--bigger"]),
        ("enlarger train bundled --photos photos --steps=3", []),
        ("bash scripts/test", []),
        ("bash scripts/absent", ["scripts/absent"]),
    ],
)
def test_unknown_pieces_of_a_command_are_found(command: str, missing: list[str]) -> None:
    assert unknown_pieces(shlex.split(command)) == missing


def test_blocks_are_found_with_their_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "Text\n\n```python\nx = 1\n```\n\n<!-- not run: needs weights -->\n```python\ny\n```\n```console\n$ ls\n```\n"
    )
    found = [(block.line, block.language, block.code, block.skip) for block in blocks(path)]
    assert found == [
        (3, "python", "x = 1\n", None),
        (8, "python", "y\n", "needs weights"),
        (11, "console", "$ ls\n", None),
    ]
