"""What all tests share."""

import gc
import os
import platform

if platform.machine().lower() in ("x86_64", "amd64"):  # so that `auto` is one precision on every machine
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
gc.disable()  # while all is imported, which is little garbage in millions of objects


def pytest_collection_finish() -> None:
    """What is there now stays to the end: the garbage collector need not look through it again in each test."""
    gc.collect()
    gc.freeze()
    gc.enable()
