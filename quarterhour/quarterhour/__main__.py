"""`python -m quarterhour` is the command `quarterhour`."""

import sys

# As for that command, modules of the working directory, which Python has put there, are not ours.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

from quarterhour.tune.cli import main

if __name__ == "__main__":
    main()
