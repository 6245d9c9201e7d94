"""Shows how far a build is, of ninja's output on stdin; all of it goes to a log.

On a terminal the last step stands in one line that is written over; elsewhere there is a line for
each tenth of the steps. Steps of several builds, one after the other, are counted anew. Not a part
of the package: ./dev runs it with whatever python3 there is.
"""

import re
import shutil
import sys
import time

STEP = re.compile(r"^\s*\[(\d+)/(\d+)\] (.*)")


def short(text: str) -> str:
    """Return what a step is about: the file at its end."""
    return text.rstrip().rpartition(" ")[2].rpartition("/")[2] or text


def main() -> None:
    """Copy stdin to the log, and show the progress."""
    begin = time.monotonic()
    in_place = sys.stdout.isatty()
    shown = -1
    with open(sys.argv[1], "w", errors="replace") as log:  # noqa: PTH123
        for raw in sys.stdin.buffer:
            line = raw.decode(errors="replace")
            log.write(line)
            log.flush()
            match = STEP.match(line)
            if match is None:
                continue
            done, total = int(match[1]), int(match[2])
            tenth = 10 * done // max(1, total)
            if done == 1:
                shown = -1
            text = f"[{done}/{total}] {time.monotonic() - begin:.0f} s  {short(match[3])}"
            if in_place:
                width = shutil.get_terminal_size().columns - 1
                sys.stdout.write("\r\x1b[K" + text[:width])
            elif tenth > shown:
                sys.stdout.write(text + "\n")
                shown = tenth
            sys.stdout.flush()
    if in_place:
        sys.stdout.write("\r\x1b[K")
    print(f"{time.monotonic() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
