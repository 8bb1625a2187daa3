"""`python -m renderkiln.producer` is the command `renderkiln`: one command can start another without its path."""

from .cli.app import main

if __name__ == "__main__":
    main()
