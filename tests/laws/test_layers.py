"""The rooms of the package import downwards only, and nothing in it grows too large."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "enlarger"
FILES = sorted(PACKAGE.rglob("*.py"))

BOTTOM = "bottom"  # the modules that lie beside the rooms: errors, requests, strict_json
TASKS = {"image", "nn", "diffusion", "text", "checkpoint", "runtime", "hub", "tasks"}
MAY_IMPORT = {  # each room, itself and the bottom aside
    BOTTOM: set(),
    "image": set(),
    "nn": set(),
    "diffusion": set(),
    "text": {"nn", "diffusion"},
    "checkpoint": {"nn", "diffusion", "text", "runtime"},
    "runtime": set(),
    "hub": {"image"},
    "cluster": {"image"},
    "tasks": TASKS,
    "train": TASKS,
    "evaluate": TASKS,
    "diffusers": TASKS,
    "client": {"image"},
    "service": TASKS | {"cluster"},  # its worker alone, see `test_the_server_does_not_compute`
    "cli": TASKS | {"train", "evaluate", "client", "service", "cluster"},  # its verbs are the doors of the workshops
}
LIGHT = {
    "atomic_write",
    "decode",
    "encode",
    "frames",
    "generation",
    "hdr",
    "watermark",
    "colour",
    "damage",
    "deep",
    "digest",
    "mask_cleaning",
    "metadata",
    "optional_formats",
    "other_kinds",
    "special_reads",
    "tiff_tags",
}  # the modules of `image` that do without torch
DOORS = {"enlarger", "enlarger.__main__"}  # they only pass on what others hold
FOREIGN = {
    "diffusers",
    "transformers",
    "k_diffusion",
    "scipy",
    "torchvision",
    "tests",
    "huggingface_hub",
    "openvino",
    "nncf",
}  # what the tests compare with
EXTRAS = {
    "enlarger.tasks.auxiliary.depth_estimator": {"transformers"},
    "enlarger.tasks.auxiliary.safety_checker": {"transformers"},
    "enlarger.diffusers.models.foreign": {"transformers"},  # of encoders of pictures alone
    "enlarger.hub.listing": {"huggingface_hub"},
    "enlarger.runtime.engines.openvino_api": {"openvino", "nncf"},
    "enlarger.diffusion.listing": {"scipy"},  # of beta sigmas alone
}


@cache
def parse(source: str) -> ast.Module:
    """The syntax of a file, which several tests look at."""
    return ast.parse(source)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The room of an absolute module name of the package; DOORS are their own."""
    parts = module.split(".")
    if module in DOORS:
        return module
    return parts[1] if (PACKAGE / parts[1]).is_dir() else BOTTOM


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of all that is imported anywhere in a module of `package`, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_in_functions(tree: ast.AST, package: str) -> list[str]:
    """The names among them that are imported only when a function runs."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [name for function in functions for name in imports(function, package)]


def upward(module: str, source: str, package: str) -> list[str]:
    """What a module imports against the order of the rooms. EXTRAS may be imported inside functions."""
    own, tree = room(module), parse(source)
    late = imports_in_functions(tree, package)
    found = []
    for name in imports(tree, package):
        top = name.split(".")[0]
        if top in EXTRAS.get(module, ()) and name in late:
            late.remove(name)
        elif top in FOREIGN:
            found.append(name)
        elif name.split(".")[0] == "enlarger" and own not in DOORS:
            other = room(name) if name.count(".") else "enlarger"
            is_version = name == "enlarger.__version__"
            if other not in {own, BOTTOM, *MAY_IMPORT[own]} and not is_version:
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    assert upward(module, path.read_text(), package) == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(module_name(path)) in ("client", "service")], ids=module_name
)
def test_the_server_does_not_compute(path: Path) -> None:
    """Only the worker's process has torch in it, and what needs torch."""
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    if module.startswith("enlarger.service.worker."):
        return
    found = [name for name in imports(parse(path.read_text()), package) if heavy(name)]
    assert found == []


def heavy(name: str) -> bool:
    """Whether an absolute name is torch, or imports it."""
    if name.startswith("enlarger.image."):
        return name.split(".")[2] not in LIGHT
    return name.split(".")[0] == "torch" or (name.startswith("enlarger.") and room(name) in TASKS - {"hub"})


def test_every_room_has_its_place() -> None:
    rooms = {room(module_name(path)) for path in FILES}
    assert rooms - DOORS <= set(MAY_IMPORT), "give a new room its place in MAY_IMPORT and in docs/architecture.md"


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("enlarger.nn.unet", "import torch\nfrom enlarger.nn.blocks import sinusoid", []),
        ("enlarger.nn.unet", "def f():\n    from enlarger.diffusion import sample", ["enlarger.diffusion.sample"]),
        ("enlarger.nn.unet", "from ..tasks import depth", ["enlarger.tasks.depth"]),
        ("enlarger.errors", "import enlarger.text.encode", ["enlarger.text.encode"]),
        ("enlarger.tasks.results.result", "import enlarger", ["enlarger"]),
        ("enlarger.tasks.results.result", "from diffusers.models import UNet2DModel", ["diffusers.models.UNet2DModel"]),
        ("enlarger.evaluate.sheet", "from enlarger.train import photos", ["enlarger.train.photos"]),
        ("enlarger.cli.train", "from enlarger.train import photos", []),
        ("enlarger.tasks.auxiliary.safety_checker", "def f():\n    import transformers", []),
        (
            "enlarger.tasks.auxiliary.safety_checker",
            "import transformers\ndef f():\n    import transformers",
            ["transformers"],
        ),
        ("enlarger.tasks.auxiliary.safety_checker", "def f():\n    import diffusers", ["diffusers"]),
        ("enlarger.tasks.results.result", "def f():\n    import transformers", ["transformers"]),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, found: list[str]) -> None:
    assert upward(module, source, module.rpartition(".")[0]) == found


def names_its_formats(call: ast.AST) -> bool:
    """Whether a node is no call of `Image.open`, or one that says which of Pillow's readers may look at the file."""
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("Image.open"):
        return True
    return any(keyword.arg == "formats" for keyword in call.keywords)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_pictures_are_opened_by_the_readers_that_are_allowed(path: Path) -> None:
    calls = ast.walk(parse(path.read_text()))
    assert [call for call in calls if not names_its_formats(call)] == [], "open with image.decode.open_image"


def test_a_bare_open_is_found() -> None:
    calls = parse("with PIL.Image.open(path) as image: Image.open(path, formats=READABLE_FORMATS)")
    assert [ast.unparse(call) for call in ast.walk(calls) if not names_its_formats(call)] == ["PIL.Image.open(path)"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 400, "more than 400 lines: split the file"
    long = {
        f"{node.name}, line {node.lineno}": length(node)
        for node in ast.walk(parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > 60
    }
    assert long == {}, "more than 60 lines: split the function"


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, the docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
