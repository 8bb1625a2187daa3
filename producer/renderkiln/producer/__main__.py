"""`python -m renderkiln.producer` is the command `renderkiln`; so a command can start another without knowing its path."""

from .cli.app import main

if __name__ == "__main__":
    main()
