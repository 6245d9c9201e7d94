"""The errors that Moesaic raises: one hierarchy, each class also the built-in that fits.

The C++ core throws the classes of the same names; ``bindings/errors.cpp`` joins them to these.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BackendError",
    "CancelledError",
    "ClosedError",
    "DeadlineError",
    "FormatError",
    "InternalError",
    "IoError",
    "MoesaicError",
    "NetError",
    "OutOfMemoryError",
    "ProtocolError",
    "QueueFullError",
    "WorkerLost",
]


class MoesaicError(Exception):
    """Base of all errors that Moesaic raises on purpose."""


class ArgumentError(MoesaicError, ValueError):
    """A value given by the caller is wrong; the message says what came and what is needed."""


class ClosedError(ArgumentError):
    """The object was used after ``close()``."""


class FormatError(MoesaicError, ValueError):
    """The content of a file or message is damaged or not supported."""


class IoError(MoesaicError, OSError):
    """The operating system refused to open, read or write."""


class NetError(MoesaicError, ConnectionError):
    """A peer cannot be reached; the message names it."""


class DeadlineError(MoesaicError, TimeoutError):
    """Something did not end within the time promised."""


class ProtocolError(MoesaicError, ConnectionError):
    """A peer said what it may not say."""


class BackendError(MoesaicError, RuntimeError):
    """A device or the threads behind a backend failed."""


class QueueFullError(BackendError):
    """Too many requests are open on one model; try again when some have ended."""


class InternalError(MoesaicError, RuntimeError):
    """A bug in Moesaic; please report it with the message."""


class CancelledError(MoesaicError):
    """Running work was asked to stop, and did."""


class OutOfMemoryError(MoesaicError, MemoryError):
    """Too little memory; nothing was allocated.

    Attributes
    ----------
    needed : int
        Bytes that were needed.
    free : int
        Bytes that were free.
    """

    needed: int = 0
    free: int = 0


class WorkerLost(MoesaicError, ConnectionError):  # noqa: N818 (it says what happened)
    """A worker of a cluster is gone, or stands still.

    With ``on_loss="raise"`` at once; with ``"wait"`` and ``"replan"`` when it did not come back,
    or the others could not take its layers, in time. The call has failed for all who waited; the
    model and its sessions survive: the next call links to the workers anew and runs the tokens of
    its session again, once with ``"raise"``, else with the patience of a new loss.

    Attributes
    ----------
    node : str
        The worker's address, "host:port".
    layers : list of int
        Layers it held.
    tokens : list of int
        Tokens generated so far.
    """

    node: str = ""
    layers: list[int] = []  # noqa: RUF012 (replaced on every instance)
    tokens: list[int] = []  # noqa: RUF012 (replaced on every instance)
