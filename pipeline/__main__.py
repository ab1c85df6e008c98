"""`python -m pipeline` is the command `lamella`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
