"""`python -m promptloop` is `promptloop`."""

from promptloop.cli import main

main()
