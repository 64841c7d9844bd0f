"""Garbage is not looked for while a model is loaded, and is afterwards, however that ends."""

import gc

import pytest

from enlarger.runtime.importing import garbage_ignored


def test_garbage_is_collected_again_after_the_block() -> None:
    assert gc.isenabled()
    with pytest.raises(OSError, match="no model"), garbage_ignored():
        assert not gc.isenabled()
        raise OSError("no model")
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with garbage_ignored():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
