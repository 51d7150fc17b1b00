"""`python -m glulens` is the `glulens` command."""

from .interp.cli import main

if __name__ == "__main__":
    main()
