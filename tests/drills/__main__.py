"""Run drills and print what they measured: `python -m tests.drills [NAME ...] [--short] [--size N] [--write FILE]`.

Without names: all but the soak. With --write, each drill's table is put between its marks in a Markdown file. The exit
status is 1 if a bar is missed."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import signal
import sys
import time
from pathlib import Path

from tests.drills.catalogue import DRILLS, FAULTS
from tests.drills.figures import table
from tests.drills.storage import NoDisk

VERSIONS = ("torch", "fastapi", "starlette", "uvicorn", "h11", "pillow")


def main() -> int:
    """Parse the command line and run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # services are ended on the way out
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRILLS)}")
    parser.add_argument("--short", action="store_true", help="the sizes of continuous integration")
    parser.add_argument("--size", type=int, help="another size: requests, kills, seconds ...")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document whose tables to renew")
    arguments = parser.parse_args()
    unknown = sorted({*arguments.names} - {*DRILLS})
    if unknown:
        parser.error(f"there is no drill {', '.join(unknown)}; there are {', '.join(DRILLS)}")
    missed = 0
    for name in arguments.names or FAULTS:
        missed += one(name, arguments)
    return 1 if missed else 0


def one(name: str, arguments: argparse.Namespace) -> int:
    """Run one drill, print and write its table; how many bars it missed."""
    drill = DRILLS[name]
    usual = drill.short if arguments.short else drill.full
    size = usual if arguments.size is None else arguments.size
    say(f"## {name}\n")
    started = time.monotonic()
    try:
        figures = drill.on_its_own(size, arguments.short)
    except NoDisk as error:
        say(f"not run: {error}\n")
        return 0
    text = f"{heading(size, drill.unit, time.monotonic() - started)}\n\n{table(figures)}"
    say(f"{text}\n")
    if arguments.write is not None:
        write(arguments.write, name, text)
    return sum(not each.good() for each in figures)


def heading(size: int, unit: str, seconds: float) -> str:
    """How large the drill was, when and where."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    threads = os.environ.get("OMP_NUM_THREADS")
    return (
        f"{size:,} {unit}, {seconds:.0f} s, {datetime.date.today().isoformat()}; "
        f"{os.cpu_count()} cores, {processor()}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {versions}"
        + (f"; OMP_NUM_THREADS={threads}" if threads else "")
        + "."
    )


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def write(file: Path, name: str, text: str) -> None:
    """Put a drill's text between its marks."""
    before, start, rest = file.read_text().partition(f"<!-- drill: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not start or not end:
        raise SystemExit(f"{file} has no marks <!-- drill: {name} --> and <!-- end -->")
    file.write_text(f"{before}{start}{text}\n\n{end}{after}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
