"""`enlarger serve`, `enlarger key`, and `enlarger upscale --server`: the command line at both ends of a service."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from PIL import ExifTags, Image

import enlarger
from enlarger.cli.main import run
from enlarger.cli.serve import bundled_bounds, parse_model
from enlarger.client.responses import Result
from enlarger.errors import InputError
from enlarger.service.middleware.api_keys import hash_key
from enlarger.service.settings import Settings, load_settings
from tests.support.service import Served, running, start, stop

KEY = "a key for the tests"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENLARGER_")} | {
    "COLUMNS": "200",
    "PYTHONPATH": str(Path(enlarger.__file__).parents[1]),
}


def call(*arguments: str, env: dict[str, str] | None = None, place: Path | None = None) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "enlarger", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=place,
        env=ENVIRONMENT | (env or {}),
    )
    return done.returncode, done.stdout, done.stderr


def call_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """The same, in this process."""
    monkeypatch.setattr(sys, "argv", ["enlarger", *arguments])
    with pytest.raises(SystemExit) as caught:
        run()
    out, err = capsys.readouterr()
    status = caught.value.code
    return (1, out, f"{err}{status}\n") if isinstance(status, str) else (int(status or 0), out, err)


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("ENLARGER_CONFIG", "ENLARGER_KEY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with running(models=(), keys=[hash_key(KEY)]) as served:
        yield served


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.effect_noise((24, 18), 60).convert("RGB").save(tmp_path / "a.png")
    return tmp_path


def test_the_help_has_the_words_and_defaults_of_the_settings() -> None:
    status, out, _ = call("serve", "--help")
    assert status == 0
    for flag, name in {
        "--host": "host",
        "--queue": "queue",
        "--origin": "origins",
        "--job-minutes": "job_minutes",
    }.items():
        field = Settings.model_fields[name]
        line = next(line for line in out.splitlines() if f"{flag} " in line)
        assert (field.description or "")[:30] in line
    assert "127.0.0.1" in out


def test_the_help_imports_neither_torch_nor_a_server() -> None:
    code = """
        import sys
        from enlarger.cli.main import run
        try: run()
        except SystemExit: pass
        print(sorted({"torch", "fastapi", "uvicorn", "httpx2"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", dedent(code), "serve", "--help"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "env", "text"),
    [
        (["--port", "99999"], {}, "error: port: Input should be less than or equal to 65535"),
        (["--queue", "0"], {}, "error: queue: Input should be greater than or equal to 1"),
        (["--host", "0.0.0.0"], {}, "error: 0.0.0.0 can be reached from other machines, and there is no key"),
        (["--config", "absent.toml"], {}, "error: absent.toml: no such configuration file; make it, or leave --config"),
        ([], {"ENLARGER_CONFIG": "absent.toml"}, "error: absent.toml: no such configuration file"),
        (["--config", "wrong.toml"], {}, "error: colour: Extra inputs are not permitted"),
        (["--config", "broken.toml"], {}, "error: the configuration cannot be read: "),
        (["--model", "sd"], {}, "error: --model sd: expected NAME=PATH, or NAME=PATH,keep"),
        (["--model", "a b=x"], {}, "'a b' is no name; expected letters"),
        (["--model", "x=/nope"], {}, "error: model x: /nope: no such file or folder"),
        (["--model", "x=/nope,keep"], {}, "error: model x: /nope: no such file or folder"),
        (["--config", "lora.toml"], {}, "error: model x: absent.safetensors: no such file or folder"),
        (["--log-level", "loud"], {}, "error: log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ([], {"ENLARGER_QUEUE": "many"}, "error: queue: Input should be a valid integer"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    arguments: list[str],
    env: dict[str, str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "wrong.toml").write_text("colour = 1\n")
    (tmp_path / "broken.toml").write_text("host = \n")
    (tmp_path / "lora.toml").write_text(
        f'[[models]]\nname = "x"\npath = "{tmp_path}"\nloras = [["absent.safetensors", 1]]\n'
    )
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    status, out, err = call_here(monkeypatch, capsys, "serve", *arguments)
    assert (status, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_models_are_named_on_the_command_line() -> None:
    assert parse_model("sd=path/to=it") == {"name": "sd", "path": "path/to=it", "keep": False}
    assert parse_model("sd=x,keep") == {"name": "sd", "path": "x", "keep": True}
    for words in ("sd", "=x", "sd=", "sd=,keep"):
        with pytest.raises(InputError, match="expected NAME=PATH, or NAME=PATH,keep"):
            parse_model(words)


def test_flags_win_over_variables_and_these_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "enlarger.toml"
    file.write_text("queue = 3\nport = 4\ndisk = 5\n")
    monkeypatch.setenv("ENLARGER_CONFIG", str(file))
    monkeypatch.setenv("ENLARGER_PORT", "6")
    monkeypatch.setenv("ENLARGER_DISK", "7")
    settings = load_settings(disk=8, host=None)
    assert (settings.queue, settings.port, settings.disk, settings.host) == (3, 6, 8, "127.0.0.1")


def test_a_key_and_its_hash_are_printed() -> None:
    status, out, err = call("key")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    made = first.removeprefix("key: ")
    assert second == f'configuration: keys = ["{hash_key(made)}"]'
    assert call("key")[1] != out


def test_two_services_do_not_share_a_port(service: Served) -> None:
    port = service.url.rpartition(":")[2]
    status, _, err = call("serve", "--port", port)
    assert (status, err.count("\n")) == (2, 1)
    assert f"error: port {port} of 127.0.0.1 is taken" in err


def test_a_file_is_enlarged_at_a_service_as_here(service: Served, place: Path) -> None:
    env = {"ENLARGER_KEY": KEY}
    words = ["upscale", "a.png", "--by", "3", "--detail", "0.4", "--seed", "5", "--json"]
    status, out, err = call(*words, "-o", "there.png", "--server", service.url, env=env, place=place)
    assert status == 0, err
    there = json.loads(out)
    assert there["outputs"] == ["there.png"]
    status, out, err = call(*words, "-o", "here.png", place=place)
    assert status == 0, err
    here = json.loads(out)
    for name in ("size", "seed", "model", "consistency", "notes"):
        assert there[name] == here[name]
    with Image.open(place / "there.png") as one, Image.open(place / "here.png") as other:
        assert one.size == (72, 54)
        assert one.tobytes() == other.tobytes()


def test_what_a_file_says_is_kept_though_a_service_is_told_nothing_of_it(service: Served, place: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    Image.new("RGB", (9, 7), (200, 30, 90)).save(place / "told.jpg", exif=exif, dpi=(300, 300), comment="a hill")
    words = ["upscale", "told.jpg", "-o", "told-there.jpg", "--strip", "gps", "--server", service.url, "--key", KEY]
    status, _, err = call(*words, place=place)
    assert status == 0, err
    with Image.open(place / "told-there.jpg") as written:
        assert written.getexif()[0x0110] == "Camera" and not written.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert (written.info["dpi"], written.info["comment"]) == ((300, 300), b"a hill")


def test_the_rows_that_are_there_are_enlarged_at_a_service(service: Served, place: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 90)).save(place / "whole.jpg")
    (place / "cut.jpg").write_bytes((place / "whole.jpg").read_bytes()[:-60])
    words = ["upscale", "cut.jpg", "--salvage", "-o", "cut.png", "--server", service.url, "--key", KEY]
    status, out, err = call(*words, place=place)
    assert (status, out) == (0, "cut.png\n"), err


def test_a_bad_file_is_reported_and_the_others_go_on(service: Served, place: Path) -> None:
    (place / "bad.png").write_bytes(b"no picture")
    words = ["upscale", "a.png", "bad.png", "--server", service.url, "--key", KEY]
    status, out, err = call(*words, place=place)
    assert (status, out) == (1, "a-x2.png\n")
    assert "1 of 2 files failed" in err
    assert "is not a picture" in err


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--server", "http://127.0.0.1:1"], 1, "error: http://127.0.0.1:1 does not answer"),
        (["--server", "127.0.0.1"], 1, "error: url is '127.0.0.1', expected an address such as http://"),
        (
            ["--server", "http://x", "--device", "cpu"],
            2,
            "--device cannot be given with --server: the service has its own",
        ),
        (
            ["--server", "http://x", "--model", "m", "--variant", "fp16"],
            2,
            "options on how to read a model cannot be given",
        ),
    ],
)
def test_what_cannot_be_asked_of_a_service(
    arguments: list[str],
    status: int,
    text: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    found, out, err = call_here(monkeypatch, capsys, "upscale", "a.png", *arguments)
    assert (found, out) == (status, "")
    assert text in err


def test_a_wrong_key_is_told(service: Served, place: Path) -> None:
    status, _, err = call("upscale", "a.png", "--server", service.url, "--key", "wrong", place=place)
    assert status == 1
    assert "the key is none of this service's" in err


def test_the_way_over_a_service_needs_no_torch(service: Served, place: Path) -> None:
    code = """
        import sys
        from enlarger.cli.main import run
        try: run()
        except SystemExit: pass
        print('torch' in sys.modules)
    """
    words = ["upscale", "a.png", "-o", "b.png", "--server", service.url, "--key", KEY]
    done = subprocess.run(
        [sys.executable, "-c", dedent(code), *words], cwd=place, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["b.png", "False"], done.stderr


def test_sigterm_ends_a_service_in_order(tmp_path: Path) -> None:
    with running(tmp_path / "data", models=()) as served:
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        assert "Traceback" not in served.log_tail()


def test_a_client_outlives_the_service(tmp_path: Path) -> None:
    """The service is killed while it works, and started again: the client gets its picture all the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    image = Image.effect_noise((320, 320), 60).convert("RGB")
    working = threading.Event()
    results: list[Result] = []

    def request() -> None:
        with enlarger.Client(f"http://127.0.0.1:{port}") as client:
            results.append(client.upscale(image, detail=1.0, watch=lambda progress: working.set()))

    first = start(tmp_path, tmp_path / "data", (), {"port": port})
    asking = threading.Thread(target=request)
    try:
        first.wait_ready()
        asking.start()
        assert working.wait(30)
    finally:
        first.process.kill()
        first.process.wait()
    second = start(tmp_path, tmp_path / "data", (), {"port": port})
    try:
        asking.join(60)
        assert [result.image.size for result in results] == [(640, 640)]
    finally:
        stop(second)


def test_megapixels_bound_what_the_bundled_model_enlarges_twofold(tmp_path: Path) -> None:
    bounds = load_settings(data=tmp_path, bounds=bundled_bounds(80)).bounds
    assert (bounds.pixels, bounds.bundled_pixels, bounds.bundled_output_pixels) == (80_000_000, 80_000_000, 320_000_000)
    assert bounds.for_kind("bundled").upscale_pixels == 80_000_000 and bounds.for_kind("x2") == bounds
    assert load_settings(data=tmp_path, bounds=bundled_bounds(24)).bounds.pixels == 50_000_000
