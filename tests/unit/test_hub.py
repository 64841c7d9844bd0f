"""Names of checkpoints, the files that a model needs, licences, and the copies on disk; no server is asked."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.hub import aliases, cache, fetch
from enlarger.hub.aliases import read_alias_table
from enlarger.hub.cache import LocalSnapshot, find_snapshot, read_snapshot, repair_command, resolve, snapshot_variant
from enlarger.hub.fetch import RemoteFile, RetryPolicy
from enlarger.hub.licence import is_accepted, out_of_scope_sections, read_licence, record_acceptance
from enlarger.hub.listing import RepoListing, select_files
from tests.support.hub_server import CARD, COMMIT, NEEDED, model

ALIASES = [
    "sd14", "sd15", "sd15-inpainting", "sd2-base", "sd2", "sd21-base", "sd21", "sd2-inpainting", "sd2-depth", "x4",
    "x2", "sdxl", "sdxl-refiner", "vae-ft-mse", "vae-ft-ema", "taesd", "taesdxl",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface"))
    return tmp_path / "home"


def test_the_aliases_are_configured_whole(home: Path) -> None:
    table = read_alias_table(home)
    assert [*table.aliases] == ALIASES and table.endpoint == "https://huggingface.co"
    for alias in table.aliases.values():
        for repository in (alias.repository, *alias.mirrors):
            assert aliases.REPOSITORY_NAME.fullmatch(repository) and table.alias_of(repository) is alias
        assert alias.repository not in table.unavailable, "an alias points to what is there"
        assert alias.revision == "main" or aliases.is_commit(alias.revision)
        assert alias.licence and alias.out_of_scope.startswith("README.md")
        for path, sha256 in alias.sha256.items():
            assert path.endswith(".safetensors") and re.fullmatch("[0-9a-f]{64}", sha256)
    assert all(table.replacement(repository) is not None for repository in table.unavailable)
    assert len(table.aliases["sdxl"].sha256) == 13


def test_a_name_is_an_alias_or_a_repository(home: Path) -> None:
    table = read_alias_table(home)
    assert table.lookup("sdxl").repository == "stabilityai/stable-diffusion-xl-base-1.0"
    assert table.lookup("sdxl").revision == "462165984030d82259a11f4367a4eed129e94a7b"
    other = table.lookup("runwayml/stable-diffusion-v1-5")
    assert other.revision == "main" and other.alias is table.aliases["sd15"] and other.repositories == (other.name,)
    assert table.lookup("some.one/a_model-1.0").alias is None


@pytest.mark.parametrize(
    ("name", "near"),
    [("sdxl-refine", "nearest: sdxl-refiner, sdxl"), ("SD15", "nearest: sd15"), ("xs4", "nearest: x4"),
     ("../etc", "known: sd14, sd15"), ("a/b/c", "known: sd14"), ("", "known: sd14"), ("a/..", "known: sd14")],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest(home: Path, name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        read_alias_table(home).lookup(name)
    assert str(caught.value).startswith(f"no checkpoint is called {name!r}; {near[:12]}")
    assert set(near.split(": ")[1].split(", ")) <= set(re.split(r"[:;,]? ", str(caught.value)))


def test_a_file_in_the_cache_folder_adds_aliases_and_hosts(home: Path) -> None:
    home.mkdir()
    (home / "hub.json").write_text('{"aliases": {"mine": {"repository": "me/mine"}}, "hosts": ["cdn.me"]}')
    table = read_alias_table(home)
    assert table.lookup("mine").repository == "me/mine" and "sd15" in table.aliases and "cdn.me" in table.allowed_hosts
    (home / "hub.json").write_text('{"aliases": {"mine": {"repo": "me/mine"}}}')
    with pytest.raises(CheckpointError, match=r"hub\.json: TypeError.*expected aliases, hosts, gone and endpoint"):
        read_alias_table(home)


def listing(files: dict[str, bytes] | list[str]) -> RepoListing:
    sizes = {path: len(data) for path, data in files.items()} if isinstance(files, dict) else dict.fromkeys(files, 1)
    return RepoListing("owner/model", COMMIT, {path: RemoteFile(path, size) for path, size in sizes.items()})


def paths(files: dict[str, bytes] | list[str], index: dict | None, variant: str | None = None) -> set[str]:
    return {wanted.path for wanted in select_files(listing(files), index, variant)}


def test_only_the_files_that_a_model_needs_are_selected() -> None:
    files = model()
    index = json.loads(files["model_index.json"])
    assert paths(files, index) == NEEDED
    plain = "unet/diffusion_pytorch_model.safetensors"
    assert paths(files, index, "fp16") == NEEDED - {plain} | {plain.replace(".safe", ".fp16.safe")}
    with pytest.raises(InputError, match="owner/model: no variant 'bf16' in safetensors; it has fp16, or leave out"):
        paths(files, index, "bf16")


def test_shards_come_with_their_index() -> None:
    stem = "unet/diffusion_pytorch_model"
    shards = {f"{stem}-0000{k}-of-00002.safetensors" for k in (1, 2)} | {f"{stem}.safetensors.index.json"}
    half = {f"{stem}.fp16-0000{k}-of-00002.safetensors" for k in (1, 2)} | {f"{stem}.safetensors.index.fp16.json"}
    files = ["model_index.json", "unet/config.json", f"{stem}.bin.index.json", *shards, *half]
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    assert paths(files, index) == {"model_index.json", "unet/config.json", *shards}
    assert paths(files, index, "fp16") == {"model_index.json", "unet/config.json", *half}
    assert paths([*files, f"{stem}.safetensors"], index) == {
        "model_index.json",
        "unet/config.json",
        f"{stem}.safetensors",
    }


def test_repositories_of_one_network_or_one_file() -> None:
    vae = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert paths(vae, None) == set(vae[:3])
    taesd = ["config.json", "taesd_decoder.safetensors", "taesd_encoder.safetensors", vae[2]]
    assert paths(taesd, None) == {"config.json", vae[2]}
    assert paths(["LICENSE.md", "lora.safetensors", "sample.png"], None) == {"LICENSE.md", "lora.safetensors"}


@pytest.mark.parametrize(
    ("files", "error"),
    [
        (["unet/config.json", "unet/diffusion_pytorch_model.bin"],
         "unet/ holds diffusion_pytorch_model.bin, but no safetensors; only safetensors are pulled: look for"),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"],
         "unet/ has safetensors of fp16 alone; add --variant"),
    ],
)  # fmt: skip
def test_networks_without_plain_safetensors_are_named(files: list[str], error: str) -> None:
    with pytest.raises(Unsupported) as caught:
        paths(files, {"unet": ["diffusers", "UNet2DConditionModel"]})
    assert str(caught.value).startswith(f"owner/model: {error}")


def test_a_repository_of_several_single_files_lists_them() -> None:
    with pytest.raises(
        Unsupported, match=r"not in diffusers' layout, but single files: a\.safetensors, b\.safetensors"
    ):
        paths(["a.safetensors", "b.safetensors"], None)
    with pytest.raises(Unsupported, match=r"owner/model: the repository holds whole\.ckpt, but no safetensors"):
        paths(["whole.ckpt"], None)


def test_a_card_tells_licence_and_what_the_model_is_not_for() -> None:
    licence = read_licence(CARD)
    assert (licence.name, licence.link) == ("openrail++", "")
    assert licence.out_of_scope == "### Out-of-Scope Use\nNot for facts.[2J\n#### Details\nNor for people."
    other = read_licence('---\nlicense: other\nlicense_name: "sai-nc"\nlicense_link: LICENSE.md\n---\n## Uses\nAll.')
    assert (other.name, other.link, other.out_of_scope) == ("sai-nc", "LICENSE.md", "")
    assert read_licence("---\nlicense:\n- mit\n- x\n---\n").name == "mit"
    assert read_licence("# Card\n- **License:** [CreativeML Open RAIL++-M License](x)").name.startswith("CreativeML")
    assert read_licence("").name == ""


def test_several_sections_about_misuse_are_all_kept() -> None:
    card = "## Misuse\na\n### Malicious use\nb\n# Training\nc\n## Out-of-scope use\nd\n## Bias\ne"
    assert read_licence(card).out_of_scope == "## Misuse\na\n### Malicious use\nb\n## Out-of-scope use\nd"
    assert len(read_licence("## Misuse\n" + "long " * 9999).out_of_scope) < 6100


@pytest.mark.parametrize(
    ("heading", "depth"),
    [
        ("# Misuse", 1),
        ("###### Misuse ######", 6),
        ("#\tMisuse #", 1),
        ("####### Misuse", 0),
        ("#Misuse", 0),
        ("## ", 0),
    ],
)
def test_what_a_heading_is(heading: str, depth: int) -> None:
    assert out_of_scope_sections(f"{heading}\nkept") == (f"{heading.replace(chr(9), '')}\nkept" if depth else "")


def test_a_long_line_of_a_card_is_read_once() -> None:
    """What took hours with an expression that goes back: a million blanks, and a million signs of a heading."""
    for line in (
        "# a" + " " * 1_000_000 + "b",
        "# a" + " #" * 500_000 + "b",
        "#" * 1_000_000,
        "---\nlicense:" + "\n " * 500_000,
    ):
        assert read_licence(line).name == ""


def test_an_accepted_licence_is_remembered_with_its_date(tmp_path: Path) -> None:
    assert not is_accepted(tmp_path, "mit")
    record_acceptance(tmp_path, "mit", {"revision": COMMIT})
    record_acceptance(tmp_path, "openrail++", {"revision": COMMIT})
    assert is_accepted(tmp_path, "mit") and not is_accepted(tmp_path, "other")
    entry = json.loads((tmp_path / "licences.json").read_text())["mit"]
    assert entry["revision"] == COMMIT and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry["date"])


def put(
    repository: str, revision: str = COMMIT, files: dict[str, bytes] | None = None, folder: Path | None = None
) -> LocalSnapshot:
    """A copy as pulling leaves it."""
    files = {"unet/config.json": b"{}", "unet/model.safetensors": b"weights"} if files is None else files
    folder = cache.repo_folder(repository) / revision if folder is None else folder
    wanted = {path: RemoteFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}
    copy = LocalSnapshot(folder, repository, revision, "https://huggingface.co", wanted)
    copy.save()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return copy


def test_a_record_is_read_as_it_was_written() -> None:
    copy = put("owner/model")
    assert read_snapshot(copy.folder) == copy and [*cache.local_snapshots()] == [copy]
    (copy.folder / cache.RECORD_FILE).write_text('{"repository": "x"}')
    with pytest.raises(CheckpointError, match=r"damaged record \(KeyError\('files'\)\); delete .* and pull it again"):
        read_snapshot(copy.folder)


@pytest.mark.parametrize(
    "entry", [{"../x": {"size": 1}}, {"x": {"size": -1}}, {"x": {"size": 1, "sha256": "../" * 20}}, {"x": {"git": "a"}}]
)
def test_a_record_cannot_lead_out_of_its_folder(tmp_path: Path, entry: dict) -> None:
    about = {"repository": "o/m", "revision": COMMIT, "endpoint": "https://x", "files": entry}
    (tmp_path / cache.RECORD_FILE).write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="damaged record"):
        read_snapshot(tmp_path)


def test_names_resolve_to_paths_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    (tmp_path / "sdxl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("sdxl") == Path("sdxl") and resolve(tmp_path / "sdxl") == tmp_path / "sdxl"
    with pytest.raises(
        CheckpointError, match=r"^sd15: no such path, and not in the cache; fetch it once: enlarger pull sd15$"
    ):
        resolve("sd15")
    with pytest.raises(CheckpointError, match=r"fetch it once: enlarger pull owner/model$"):
        resolve("owner/model")
    with pytest.raises(
        CheckpointError, match=r"^\./there: no such file or folder, and no checkpoint is called '\./there'"
    ):
        resolve("./there")
    copy = put("owner/model")
    assert resolve("owner/model") == copy.folder
    mirror = put("runwayml/stable-diffusion-v1-5")
    assert resolve("sd15") == mirror.folder and resolve("runwayml/stable-diffusion-v1-5") == mirror.folder
    own = put("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert resolve("sd15") == own.folder
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "a-x2.png").write_bytes(b"a result")
    assert resolve("sd15") == own.folder
    (tmp_path / "sd15" / "model_index.json").write_text("{}")
    assert resolve("sd15") == Path("sd15")
    for name in ("a-x2.png", "model_index.json"):
        (tmp_path / "sd15" / name).unlink()
    (tmp_path / "sd15").rmdir()
    (own.folder / "unet/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 files are missing or cut short, unet/model\.safetensors first"):
        resolve("sd15")


def test_the_revision_that_was_pulled_last_under_a_name_is_taken(home: Path) -> None:
    source = read_alias_table(home).lookup("owner/model")
    old, new = put("owner/model", "a" * 40), put("owner/model", "b" * 40)
    cache.save_ref("owner/model", "main", old.revision)
    assert find_snapshot(source) == old and find_snapshot(source, new.revision) == new
    assert find_snapshot(source, "v2") is None and cache.resolve_commit("owner/model", "main") == old.revision


def test_the_repair_command_names_folder_and_mirror(tmp_path: Path) -> None:
    start = f"enlarger pull owner/model --revision {COMMIT} --repair"
    assert repair_command(put("owner/model")) == start
    aside = put("owner/model", folder=tmp_path / "a b")
    assert repair_command(aside) == f'{start} --to "{tmp_path / "a b"}"'
    other = LocalSnapshot(cache.repo_folder("owner/model") / COMMIT, "owner/model", COMMIT, "https://mirror.example")
    assert repair_command(other) == f"{start} --mirror https://mirror.example"


def test_the_variant_of_a_folder_that_has_one() -> None:
    half = put("o/a", files={"unet/model.fp16.safetensors": b"", "vae/model.fp16-00001-of-00002.safetensors": b""})
    assert snapshot_variant(half.folder) == "fp16"
    assert snapshot_variant(put("o/b").folder) is None and snapshot_variant(Path("nowhere")) is None
    both = put("o/c", files={"unet/model.fp16.safetensors": b"", "vae/model.safetensors": b""})
    assert snapshot_variant(both.folder) is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENLARGER_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache.cache_dir() == tmp_path / "enlarger"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache.cache_dir() == Path.home() / "Library/Caches/enlarger"
    monkeypatch.setenv("ENLARGER_HOME", "~/models")
    assert cache.cache_dir() == Path.home() / "models"


def test_patience_doubles_and_heeds_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    for failures in (1, 2, 3, 4):
        RetryPolicy(5, 0.5).sleep(failures, None)
    RetryPolicy(5, 0.5).sleep(1, 7.0)
    RetryPolicy(5, 0.5).sleep(1, 9e9)
    assert slept == [0, 0.5, 1, 2, 7, 60]
