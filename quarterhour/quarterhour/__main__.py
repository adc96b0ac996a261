"""`python -m quarterhour` is the command `quarterhour`."""

from quarterhour.tune.cli import main

if __name__ == "__main__":
    main()
