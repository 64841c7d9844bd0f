"""The client without the networks: the distribution of it has all that `from enlarger import Client` needs, no more."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "packaging" / "enlarger-client" / "pyproject.toml"
SCRIPT = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "safetensors", "tokenizers", "typer", "rich", "fastapi", "pydantic"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Nothing())
import json, enlarger
assert enlarger.__file__.startswith(sys.argv[1])
from enlarger import AsyncClient, Client, ServiceError
try:
    with Client("http://127.0.0.1:9") as client:
        client.health()
except ServiceError as error:
    said = str(error)
try:
    enlarger.upscale
except ImportError as error:
    assert "install enlarger" in str(error), error
import PIL.Image
from enlarger.client.images import encode_image_file
assert encode_image_file(PIL.Image.new("RGB", (2, 2)))[:4] == b"\\x89PNG"
print(json.dumps([said, sorted(name for name in sys.modules if name.startswith("enlarger."))]))
"""


def included() -> dict[str, str]:
    return tomllib.loads(PROJECT.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def test_the_client_works_with_what_its_distribution_has(tmp_path: Path) -> None:
    for source, target in included().items():
        place = tmp_path / target
        place.parent.mkdir(parents=True, exist_ok=True)
        found = PROJECT.parent / source
        shutil.copytree(found, place) if found.is_dir() else shutil.copy(found, place)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, modules = json.loads(done.stdout)
    assert "127.0.0.1:9" in said
    files = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.py")}
    unused = files - {name.replace(".", "/") for name in modules}
    assert unused <= {"enlarger/__init__", "enlarger/client/__init__", "enlarger/image/__init__"}


def test_both_distributions_ask_for_the_same_versions() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    light = tomllib.loads(PROJECT.read_text())["project"]
    assert set(light["dependencies"]) <= set(whole["dependencies"])
    assert light["requires-python"] == whole["requires-python"]
    assert not any(name.startswith("torch") for name in light["dependencies"])
