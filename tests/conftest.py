"""What all tests share."""

import os
import platform

if platform.machine().lower() in ("x86_64", "amd64"):  # so that `auto` is one precision on every machine
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
