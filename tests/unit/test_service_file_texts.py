"""The texts of a picture's file are answered within what a message may have."""

from pathlib import Path

from PIL import Image, PngImagePlugin

from enlarger.service.uploads.decoder_process import encode_reply
from enlarger.service.uploads.file_texts import MAX_CHARACTERS, read_texts
from enlarger.service.uploads.messages import MAX_REPLY_BYTES


def test_many_long_texts_are_cut_to_a_message(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    for index in range(12):
        info.add_itxt(f"t{index}", ("\U0001f600", "\u4e00")[index % 2] * 2 * MAX_CHARACTERS)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as image:
        found = read_texts(image, tmp_path / "a.png")
    assert [len(text) for text in found.texts.values()] == [MAX_CHARACTERS // 2, MAX_CHARACTERS] * 4
    assert len(encode_reply(found)) < MAX_REPLY_BYTES
