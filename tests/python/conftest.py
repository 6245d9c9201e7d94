"""Which tests also run under ASan + UBSan (`./dev sanitize`).

Those that cross the border with odd input and owners. The whole suite would
take the better part of an hour there; the C++ tests cover the computing.
"""

import os
import signal

import pytest

# Workers that tests start need not measure this machine, each for a second; that is tested in C++,
# and where a test asks for it.
os.environ.setdefault("MOESAIC_RATES", "25G,600G")

# A runner that was started in the background by a shell ignores SIGINT, and so would all that is
# tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)

SANITIZED = (
    "files/test_bad_input.py",
    "files/test_gguf.py",
    "engine/test_arguments.py",
    "engine/test_arrays.py",
    "engine/test_score.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # ASan keeps freed memory for a while: watching the size of the process says nothing there.
        if item.path.as_posix().endswith(SANITIZED) and "leak" not in item.name:
            item.add_marker(pytest.mark.sanitizer)
