"""A decoder that is taken over by each picture: it tries what it must not be able to do, and says what it could.

Its notes are the names of what succeeded. `SECRETS` names files outside of its job, divided by colons.
"""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from enlarger.service.uploads import decoder_process
from enlarger.service.uploads.decoder_process import MemoryLimit
from enlarger.service.uploads.messages import DecodedImage, DecodeRequest


def connect(family: int, address: object) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.connect(address)


def attempts(request: DecodeRequest) -> dict[str, Callable[[], object]]:
    folder = Path(request.out).parent
    return {
        "reads its upload": Path(request.source).read_bytes,
        "writes into its job": lambda: (folder / "mine").write_bytes(b"x"),
        "reads the passwords": Path("/etc/passwd").read_bytes,
        "reads another job": (folder.parent / "other" / "image.png").read_bytes,
        "writes beside its job": lambda: (folder.parent / "planted").write_bytes(b"x"),
        "changes another's mode": lambda: (folder.parent / "other").chmod(0o777),
        "lists the jobs": lambda: list(folder.parent.iterdir()),
        "reads the server's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "reads a secret": lambda: os.environ["ENLARGER_SECRET"],
        "reaches a network": lambda: connect(socket.AF_INET, ("127.0.0.1", int(folder.name))),
        "reaches a local socket": lambda: connect(socket.AF_UNIX, str(folder.parent / "socket")),
        "starts a program": lambda: subprocess.run(["true"], check=True),
        "makes a process": lambda: os.fork() or os._exit(0),
        "takes more memory than its picture needs": lambda: bytearray(200 << 20),
        "kills its parent": lambda: os.kill(os.getppid(), 0),
        "writes to who asked": lambda: os.write(4, b"lies"),
    }


def taken_over(request: DecodeRequest, _: MemoryLimit | None) -> DecodedImage:
    could: list[str] = []
    for name, attempt in attempts(request).items():
        try:
            attempt()
        except Exception:  # noqa: BLE001 - whatever stops it
            continue
        could.append(name)
    return DecodedImage(1, 1, "PNG", "L", tuple(could), "", False, (1, 1))


decoder_process.decode = taken_over
decoder_process.main()
