"""`python -m promptloop` is `promptloop`."""

from promptloop.cli import main

if __name__ == "__main__":
    main()
