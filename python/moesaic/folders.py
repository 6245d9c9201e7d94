"""The user's folders for settings and for what can be made again, as the platform has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from moesaic import _core
from moesaic.errors import IoError


def config_folder() -> Path:
    """Return the user's folder for Moesaic's settings; it need not exist."""
    return _user_folder("XDG_CONFIG_HOME", ".config", "Application Support")


def cache_folder() -> Path:
    """Return the user's folder for what can be made again; it need not exist."""
    return _user_folder("XDG_CACHE_HOME", ".cache", "Caches")


def _user_folder(variable: str, usual: str, on_a_mac: str) -> Path:
    chosen = os.environ.get(variable)
    if chosen and Path(chosen).is_absolute():  # relative ones are to be ignored, says XDG
        return Path(chosen) / "moesaic"
    try:
        home = Path.home()
    except RuntimeError:
        raise IoError(f"this user has no home folder; set {variable} to a folder") from None
    if sys.platform == "darwin":
        return home / "Library" / on_a_mac / "moesaic"
    return home / usual / "moesaic"


def make_private(folder: Path) -> Path:
    """Make a folder for this user alone, unless it is there.

    Raises
    ------
    IoError
        It cannot be made, or is there and another user's, or others may write to it or to a
        folder above it (as ssh's StrictModes has it).
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise IoError(f"{folder}: cannot be made: {error.strerror}; name another folder") from None
    if owner not in (os.geteuid(), 0):
        raise IoError(f"{folder}: belongs to another user (number {owner}); name another folder")
    why = replaceable(folder)
    if why:
        raise IoError(f"{folder}: {why}")
    return folder


def replaceable(folder: Path) -> str:
    """Say why other users may replace the files in a folder, and what to do; "": they cannot."""
    return _core.replaceable_by_others(os.fsencode(folder))
