"""Whatever the network, the disk or a kill does to a pull: a file is under its name whole and right, or not at all."""

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enlarger.errors import CheckpointError, InputError
from enlarger.hub import cache, fetch
from enlarger.hub.cache import RECORD_FILE, read_snapshot
from tests.support.hub_pull import RecordingListener, pull_here, start_pull, tree
from tests.support.hub_server import COMMIT, NEEDED, Hub, listing, model, serve, sha256

KILLS = int(os.environ.get("TEST_KILLS", "10"))
NAME = "owner/model"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    with serve({NAME: model()}) as hub:
        yield hub


def needed(hub: Hub) -> dict[str, bytes]:
    return {path: data for path, data in hub.models[NAME].items() if path in NEEDED}


def size(hub: Hub) -> int:
    return sum(map(len, needed(hub).values()))


def folder(home: Path) -> Path:
    return home / "models" / "owner--model" / COMMIT


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.suffix in (".part", ".etag")]


def test_ten_cuts_in_one_run_cost_less_than_a_tenth_more(hub: Hub, home: Path) -> None:
    hub.cut_after = [1, 20_000, 70_000, 3, 16_384, 99_999, 50_000, 40_000, 80_000, 65_536]
    done = pull_here(NAME, hub.url)
    assert tree(done.folder) == needed(hub) and not hub.cut_after and not leftovers(home)
    assert hub.sent <= 1.1 * size(hub)


def test_runs_that_end_early_go_on_where_they_stopped(hub: Hub, home: Path) -> None:
    for k in range(1, 11):  # each run loses four connections and gives up
        hub.cut_after = [5_000] * 4
        with pytest.raises(CheckpointError, match=rf"{UNET}: .*{20_000 * k:,} of 300,000 bytes are kept"):
            pull_here(NAME, hub.url)
        assert not (folder(home) / UNET).exists()
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)
    assert hub.sent - 10 * overhead(hub) <= 1.1 * size(hub)


def overhead(hub: Hub) -> int:
    """Bytes that a run asks for before the files: the listing and the index."""
    files = hub.models[NAME]
    return len(listing(hub, files)) + len(files["model_index.json"]) + len(files["README.md"])


def test_parts_are_asked_for_with_the_etag(hub: Hub) -> None:
    hub.cut_after = [100_000]
    pull_here(NAME, hub.url)
    first, second, third = hub.large()
    assert "Range" not in first and "Range" not in third
    assert second["Range"] == "bytes=100000-" and second["If-Range"] == hub.etag(sha256(hub.models[NAME][UNET]))


@pytest.mark.parametrize("error", ["no ranges", "changed etag", "weak etag", "no etag"])
def test_servers_that_cannot_promise_the_same_file_are_served_too(hub: Hub, error: str) -> None:
    hub.cut_after = [100_000]
    hub.ranges = error != "no ranges"
    count = iter(range(1000))
    tags = {
        "changed etag": lambda digest: f'"{next(count)}"',
        "weak etag": 'W/"{}"'.format,
        "no etag": lambda digest: "",
    }
    hub.etag = tags.get(error, hub.etag)
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)


@pytest.mark.parametrize("error", ["416", "shifted", "longer", "unnamed", "etag"])
def test_an_answer_that_is_not_the_part_asked_for_is_not_used(hub: Hub, error: str) -> None:
    hub.cut_after, hub.parts = [100_000], [error]
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub) and not hub.parts


def test_a_part_that_is_damaged_is_fetched_again(hub: Hub, home: Path) -> None:
    hub.cut_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError, match="bytes are kept"):
        pull_here(NAME, hub.url)
    part = next(path for path in leftovers(home) if path.suffix == ".part")
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)


def test_a_part_longer_than_the_file_is_dropped(hub: Hub, home: Path) -> None:
    hub.cut_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError, match="bytes are kept"):
        pull_here(NAME, hub.url)
    part = next(path for path in leftovers(home) if path.suffix == ".part")
    part.write_bytes(bytes(300_001))
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)


def test_a_bit_that_flips_on_the_way_is_found(hub: Hub, home: Path) -> None:
    hub.damage = [1234]
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)
    hub.damage = [5, 5]
    with pytest.raises(CheckpointError, match="what came twice differs from what is published or listed"):
        pull_here(NAME, hub.url, variant="fp16")
    assert set(tree(folder(home))) == NEEDED and not leftovers(home)


def test_a_file_that_changes_between_two_runs_is_fetched_anew(hub: Hub, home: Path) -> None:
    hub.cut_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(CheckpointError, match="bytes are kept"):
        pull_here(NAME, hub.url)
    hub.commit = "d" * 40
    hub.models[NAME][UNET] = bytes(250_000)
    done = pull_here(NAME, hub.url)
    assert done.folder.name == "d" * 40 and tree(done.folder) == needed(hub)


def test_a_server_that_offers_another_size_than_listed_is_refused(hub: Hub) -> None:
    original = hub.file
    hub.file = lambda digest: original(digest) + b"more"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(CheckpointError, match="offers 300004 bytes, the hub lists 300000: it may just have changed"):
        pull_here(NAME, hub.url)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, status: int) -> None:
    hub.statuses = [status, status]
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)
    hub.statuses = [status] * 4
    with pytest.raises(CheckpointError, match=f"the server answers {status}; 0 of 150,000 bytes are kept"):
        pull_here(NAME, hub.url, variant="fp16")


@pytest.mark.parametrize("count", [2, 8])
def test_processes_that_pull_at_once_fetch_once(hub: Hub, count: int) -> None:
    hub.models[NAME] |= {path: data * 2 for path, data in model().items() if path.endswith(".safetensors")}
    hub.pause = 0.005
    running = [start_pull(NAME, hub.url) for _ in range(count)]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * count, results
    folders = {out.split()[0] for out, _ in results}
    assert len(folders) == 1 and tree(Path(folders.pop())) == needed(hub)
    assert len(hub.large()) == 2
    assert hub.sent <= 1.05 * size(hub)


def test_a_redirect_to_a_host_off_the_list_is_refused_before_it_is_looked_up(hub: Hub, home: Path) -> None:
    for target, why in (
        ("https://evil.example/{}", "https://evil.example, a host that is not on the list: refused"),
        ("https://huggingface.co@evil.example/{}", "https://evil.example, a host"),
        ("https://evilhf.co/{}", "https://evilhf.co, a host"),
        ("http://huggingface.co/{}", "http://huggingface.co, which is not https: refused"),
        ("http://127.0.0.2/{}", "http://127.0.0.2, which is not https: refused"),
        ("ftp://127.0.0.1/{}", "which is not https: refused"),
        ("file:///etc/passwd#{}", "which is not https: refused"),
        ("http://127.0.0.1:9/{}", "http://127.0.0.1, a host that is not on the list"),
    ):
        hub.cdn_url = target.format
        with pytest.raises(CheckpointError, match=f"127.0.0.1 redirects to .*{why}"):
            pull_here(NAME, hub.url)
    assert not any((folder(home) / path).exists() for path in NEEDED if path.endswith(".safetensors"))
    hub.api_redirect = "https://evil.example/api"
    with pytest.raises(CheckpointError, match="not on the list: refused"):
        pull_here(NAME, hub.url)


def test_redirects_do_not_go_on_forever(hub: Hub) -> None:
    hub.api_redirect = "/api/models/owner/model/revision/main"
    with pytest.raises(CheckpointError, match="more than 5 redirects"):
        pull_here(NAME, hub.url)


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(hub.models) as other:
        home.mkdir()
        (home / "hub.json").write_text(f'{{"hosts": ["{other.url.removeprefix("http://")}"]}}')
        hub.cdn_url = lambda digest: f"{other.url}/cdn/{digest}"
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = pull_here(NAME, None)
        assert tree(done.folder) == needed(hub)
        assert len(other.large()) == 2
        assert not any("Authorization" in headers for _, headers in other.requests)
        assert all(headers["Authorization"] == "Bearer hf_secret" for _, headers in hub.requests)
        asked = len(hub.requests)
        pull_here(NAME, hub.url, to=home / "mine")  # as a mirror it is not the hub
        assert not any("Authorization" in headers for _, headers in hub.requests[asked:])


@pytest.mark.parametrize("address", ["http://huggingface.co", "http://127.0.0.1.evil.example", "ftp://x", "", "hub"])
def test_a_hub_without_encryption_is_refused(hub: Hub, address: str) -> None:
    with pytest.raises(InputError, match=r"expected an https address \(http is for 127\.0\.0\.1 only\)"):
        pull_here(NAME, address)


@pytest.mark.parametrize("after", [0, 1000, 299_999])
def test_a_full_disk_leaves_nothing_behind(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    written = 0
    write = fetch._write_all

    def full(file, chunk):
        nonlocal written
        written += len(chunk)
        if written > after + 2000:  # the small files before
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, chunk)

    monkeypatch.setattr(fetch, "_write_all", full)
    with pytest.raises(CheckpointError, match="the disk is full; free 300,000 bytes, or give another place"):
        pull_here(NAME, hub.url)
    assert not leftovers(home)
    monkeypatch.undo()
    monkeypatch.setenv("ENLARGER_HOME", str(home))
    assert tree(pull_here(NAME, hub.url).folder) == needed(hub)


def test_a_disk_that_is_too_small_is_seen_before(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enlarger.hub.pull.RESERVED_DISK_BYTES", 10**15)
    with pytest.raises(CheckpointError, match=r"bytes are to come, but [\d,]+ are free; make room"):
        pull_here(NAME, hub.url)
    assert not hub.large()


def test_kills_leave_no_half_file_under_a_final_name(hub: Hub, home: Path) -> None:
    draw = random.Random(0)
    hub.models[NAME] = model(600_000)
    hub.pause = 0.002
    expected, bad, killed = needed(hub), [], 0
    for _ in range(KILLS):
        process = start_pull(NAME, hub.url)
        goal, end = hub.sent + draw.randrange(0, 200_000), time.monotonic() + 20
        while hub.sent < goal and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        found = tree(folder(home)) if folder(home).exists() else {}
        bad += [path for path, data in found.items() if expected.get(path) != data]
        copy = read_snapshot(folder(home)) if (folder(home) / RECORD_FILE).exists() else None
        bad += [] if copy is None else sorted(set(found) - set(copy.files))
        if copy is not None and not copy.missing_files():  # done between two kills: begin again
            for path in found:
                (folder(home) / path).unlink()
    hub.pause = 0
    assert bad == [] and killed >= KILLS * 0.8
    assert tree(pull_here(NAME, hub.url).folder) == expected and not leftovers(home)


def test_flipped_bits_and_cut_files_are_found_and_repaired_alone(hub: Hub, home: Path) -> None:
    done = pull_here(NAME, hub.url)
    copy = read_snapshot(done.folder)
    assert copy is not None and copy.missing_files() == [] and copy.damaged_files() == {}
    for path, data in needed(hub).items():
        where = len(data) // 2
        (done.folder / path).write_bytes(data[:where] + bytes([data[where] ^ 16]) + data[where + 1 :])
        assert copy.missing_files() == [] and [*copy.damaged_files()] == [path]
        heard = RecordingListener()
        asked = len(hub.large())
        pull_here(NAME, hub.url, heard, repair=True, revision=COMMIT)
        assert heard.files == [path] and len(hub.large()) - asked == path.endswith(".safetensors")
        assert (done.folder / path).read_bytes() == data
        (done.folder / path).write_bytes(data[:where])
        assert copy.missing_files() == [path] and "expected" in copy.damaged_files()[path]
        with pytest.raises(CheckpointError, match=f"1 of 9 files are missing or cut short, {path} first; fetch them: "):
            cache.resolve(NAME)
        pull_here(NAME, hub.url, repair=True, revision=COMMIT)
        assert tree(done.folder) == needed(hub)
