"""No stack outlives the tests, not even tests that are killed.

`python -m tests.stack_guard HOME` waits until its stdin is closed, as it is when the process that has started it ends
in whatever way, and then stops the stack of that state folder.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack.local import down


@contextmanager
def stopping_stack(settings: Settings) -> Iterator[None]:
    """Stop the stack of these settings' state folder at the end of the block, or of this process."""
    command = [sys.executable, "-m", "tests.stack_guard", str(settings.home)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            down(settings)
            guard.kill()


def main() -> None:
    """Stop the stack once stdin is closed."""
    (home,) = sys.argv[1:]
    sys.stdin.buffer.read()
    down(Settings(home=Path(home)))


if __name__ == "__main__":
    main()
