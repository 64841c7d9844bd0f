"""A Ray cluster on this machine for as long as a service runs, in a process of its own that ends with it."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from enlarger.cluster.connect import ClusterOptions, connected, protect_local_cluster
from enlarger.errors import EnlargerError

ARGV = (sys.executable, "-m", "enlarger.service.workers.local_cluster")


@contextmanager
def local_cluster() -> Generator[str]:
    """The address of a new cluster, which child processes may join. Raises EnlargerError if it does not start."""
    protect_local_cluster()
    with subprocess.Popen(
        ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as head:
        assert head.stdin is not None and head.stdout is not None
        try:
            address = head.stdout.readline().strip()
            if not address:
                raise EnlargerError("no Ray cluster could be started here; the lines above say why")
            yield address
        finally:
            head.stdin.close()


def main() -> None:
    """Start a cluster, say its address, and end it when standard input closes."""
    try:
        with connected(ClusterOptions("local")) as ray:
            sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
            sys.stdout.flush()
            sys.stdin.read()
    except EnlargerError as error:
        sys.exit(f"enlarger: {error}")


if __name__ == "__main__":
    main()
