"""`python -m segshift` is the command line."""

from segshift.cli import main

main()
