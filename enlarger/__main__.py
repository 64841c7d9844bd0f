"""`python -m enlarger` is the command `enlarger`."""

from enlarger.cli.main import run

run()
