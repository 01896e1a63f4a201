"""A bar that tells how a preparation gets on, whichever process does the work."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

POLL_SECONDS = 0.5


@contextlib.contextmanager
def bar(path: str, num_files: int) -> Iterator[None]:
    """Shows files, files/s, hours of audio per hour and the time left, while inside.

    Args:
      path: of a text that grows by a line for each file, its seconds of audio.
      num_files: when all is done.
    """
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(total=num_files, unit="file", disable=None) as shown:

        def watch():
            while not done.wait(POLL_SECONDS):
                update()

        def update():
            seconds = read(path)
            elapsed = max(time.monotonic() - started, 1e-3)
            shown.set_postfix_str(f"{sum(seconds) / elapsed:.1f} h of audio per hour")
            shown.update(len(seconds) - shown.n)

        started = time.monotonic()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            update()


def read(path: str) -> list[float]:
    """Seconds of audio of each file that is done; a line half-written does not count."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [float(line) for line in file if line.endswith("\n")]
