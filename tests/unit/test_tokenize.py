"""CLIP token ids against the stored vectors, padding rules, cutting, chunks and damaged folders."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enlarger.errors import CheckpointError, InputError
from enlarger.text.tokenize import TokenizedPrompts, Tokenizer
from tests.support.clip_files import DATA, small_tokenizer_folder, tokenizer_folder, vocabulary_and_merges

ROWS = json.loads((DATA / "clip" / "clip_tokens.json").read_text("utf-8"))["rows"]
FOLDERS = {
    "sd1": ("stable-diffusion-v1-5", "tokenizer", 49407),
    "x2": ("sd-x2-latent-upscaler", "tokenizer", 49407),
    "sd2": ("stable-diffusion-2", "tokenizer", 0),
    "x4": ("stable-diffusion-x4-upscaler", "tokenizer", 0),
    "sdxl": ("stable-diffusion-xl-base-1.0", "tokenizer", 49407),
    "sdxl-2": ("stable-diffusion-xl-base-1.0", "tokenizer_2", 0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: tokenizer_folder(root / name, repo, part) for name, (repo, part, _) in FOLDERS.items()}


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(folders["sd1"])


def inner(tokens: TokenizedPrompts, row: int = 0) -> list[int]:
    """The ids between start and end."""
    return tokens.ids[row, tokens.mask[row]].tolist()[1:-1]


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.tokenize_in_chunks(text)
    return [i for row in range(len(tokens.ids)) for i in inner(tokens, row)]


def only_tokenizer_json(source: Path, target: Path, pad: str) -> Path:
    """A lone tokenizer.json as recent versions write it: merges as pairs, special tokens listed."""
    vocabulary, merges = vocabulary_and_merges()
    names = ["<|startoftext|>", "<|endoftext|>", *([pad] if pad == "!" else [])]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    listed = sorted(({"id": vocabulary[name], "content": name, **flags} for name in names), key=lambda t: t["id"])
    model = {"type": "BPE", "vocab": vocabulary, "merges": [merge.split() for merge in merges]}
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps({"added_tokens": listed, "model": model}), "utf-8")
    return target


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_equal_the_vectors(folders: dict[str, Path], name: str) -> None:
    tokenizer = Tokenizer.from_folder(folders[name])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (
        49406,
        49407,
        FOLDERS[name][2],
        77,
    )
    for row in ROWS:
        expected = row.get("ids_transformers", row["ids"])
        if tokenizer.pad_token_id == 0:
            expected = row.get("ids_transformers_pad_bang", expected)
        assert whole(tokenizer, row["text"]) == expected, row["text"]


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_original_ids_equal_openai_vectors(folders: dict[str, Path], name: str) -> None:
    tokenizer = Tokenizer.from_folder(folders[name], openai_compatible=True)
    for row in ROWS:
        assert whole(tokenizer, row["text"]) == row["ids"], row["text"]


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_lone_tokenizer_json(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    expected = Tokenizer.from_folder(folders[name])
    found = Tokenizer.from_folder(only_tokenizer_json(folders[name], tmp_path / "lone", "!" if name == "sd2" else ""))
    assert found.pad_token_id == expected.pad_token_id
    texts = [row["text"] for row in ROWS]
    assert found(texts).ids.equal(expected(texts).ids)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("original", [False, True])
def test_written_files_read_back_equal(folders: dict[str, Path], tmp_path: Path, name: str, original: bool) -> None:
    tokenizer = Tokenizer.from_folder(folders[name], openai_compatible=original)
    for file, text in tokenizer.to_files().items():
        (tmp_path / file).write_text(text, "utf-8")
    again = Tokenizer.from_folder(tmp_path, openai_compatible=original)
    texts = [row["text"] for row in ROWS]
    assert again(texts).ids.equal(tokenizer(texts).ids) and again.pad_token_id == tokenizer.pad_token_id


def test_special_tokens_map_wins_over_the_config(folders: dict[str, Path]) -> None:
    config = json.loads((folders["sd2"] / "tokenizer_config.json").read_text())
    assert config["pad_token"] == "<|endoftext|>" and Tokenizer.from_folder(folders["sd2"]).pad_token_id == 0


def test_rows_are_start_text_end_padding(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["a photo", ""])
    assert tokens.ids.shape == tokens.mask.shape == (2, 77) and tokens.removed_text == ("", "")
    assert tokens.ids[0, :5].tolist() == [49406, 320, 1125, 49407, 49407]
    assert tokens.mask.sum(1).tolist() == [4, 2]


def test_a_single_string_is_one_text(tokenizer: Tokenizer) -> None:
    assert tokenizer("a photo").ids.equal(tokenizer(["a photo"]).ids)


def test_exactly_75_tokens_fit(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["a " * 75, "a " * 75 + "Red  Dog"])
    assert tokens.removed_text == ("", "Red  Dog")
    assert tokens.ids[0].equal(tokens.ids[1]) and tokens.mask.all()
    assert tokens.ids[0, -1] == 49407


def test_chunks_lose_nothing(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenize_in_chunks("a " * 160)
    assert tokens.ids.shape == (3, 77) and tokens.mask.sum(1).tolist() == [77, 77, 12]
    assert tokenizer.tokenize_in_chunks("").ids.equal(tokenizer([""]).ids)
    assert len(tokenizer.tokenize_in_chunks("a " * 75).ids) == 1


def test_surrogates_and_nul_are_defined(tokenizer: Tokenizer) -> None:
    assert tokenizer(["a \ud800 b"]).ids.equal(tokenizer(["a \ufffd b"]).ids)
    assert tokenizer(["\ud83d\ude00"]).ids.equal(tokenizer(["\U0001f600"]).ids)
    assert inner(tokenizer(["a\0b"])) and tokenizer.tokenize_in_chunks("a\0b").mask.sum() < 10


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_any_text_gives_full_rows(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer([text])
    assert tokens.ids.shape == (1, 77) and tokens.ids.min() >= 0 and tokens.ids.max() <= 49407
    assert tokens.ids[0, 0] == 49406 and tokens.mask[0, :2].all()


def test_a_prompt_that_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="a prompt is a int, expected a string"):
        tokenizer([3])  # type: ignore[list-item] - on purpose


def test_added_tokens_are_matched_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folders["sd1"])
    for file, text in tokenizer.to_files().items():
        (tmp_path / file).write_text(text, "utf-8")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    config["added_tokens_decoder"]["49408"] = {"content": "<cat-toy>", **flags}
    path.write_text(json.dumps(config))
    assert inner(Tokenizer.from_folder(tmp_path)(["a <cat-toy>"])) == [320, 49408]
    config["added_tokens_decoder"]["50000"] = config["added_tokens_decoder"].pop("49408")
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="added token '<cat-toy>' gets id 49408, the files say 50000"):
        Tokenizer.from_folder(tmp_path)


def test_damaged_folders_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer.json, nor vocab.json with merges.txt"):
        Tokenizer.from_folder(tmp_path)
    folder = small_tokenizer_folder(tmp_path / "small")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: not valid JSON"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\nq q\n")
    with pytest.raises(CheckpointError, match=r"small: not a CLIP tokenizer .*out of vocabulary"):
        Tokenizer.from_folder(folder)
    (folder / "merges.txt").write_text("")
    (folder / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    with pytest.raises(CheckpointError, match=r"small: the vocabulary has no token '<\|startoftext\|>'"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    "text", ["[]", '{"added_tokens": 5}', '{"model": {}}', '{"model": {"vocab": 3, "merges": [1]}}', "{"]
)
def test_damaged_tokenizer_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Tokenizer.from_folder(tmp_path)


def test_the_backend_serves_threads(tokenizer: Tokenizer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [row["text"] for row in ROWS] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: tokenizer([text]).ids, texts))
    assert all(ids[0].equal(row) for ids, row in zip(found, tokenizer(texts).ids, strict=True))
