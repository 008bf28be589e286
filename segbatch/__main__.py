"""Run the command line as ``python -m segbatch``."""

from segbatch.cli import main

main()
