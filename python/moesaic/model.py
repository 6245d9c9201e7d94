"""Model: a GGUF file that runs. Text, logits, scores, and everything inside as NumPy arrays.

What it owns is in model_base.py; its methods by purpose in model_arrays.py, model_text.py and
model_chat.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from typing import Any, TypeVar

from moesaic import _core
from moesaic._signatures import spelled_out
from moesaic.capture import Captures
from moesaic.config import Config, Layer
from moesaic.errors import ArgumentError
from moesaic.fingerprint import Fingerprint
from moesaic.generation import GenerateOptions, LogitsProcessor
from moesaic.gguf import GGUF
from moesaic.inputs import KV_TYPES, flag, integer
from moesaic.model_arrays import ArrayMethods
from moesaic.model_base import ModelFile
from moesaic.model_chat import ChatMethods
from moesaic.model_names import located
from moesaic.overrides import Applied, Overrides, checked
from moesaic.progress import Progress, Reporter
from moesaic.progress import check as check_progress
from moesaic.results import Chunk, Generation, Timings
from moesaic.session import Session, encoded_path

__all__ = [
    "Captures",
    "Chunk",
    "Config",
    "GenerateOptions",
    "Generation",
    "Layer",
    "LogitsProcessor",
    "Model",
    "Session",
    "Timings",
]

_MAX_THREADS = 1024
_T = TypeVar("_T", bound="Model")


class Model(ChatMethods, ArrayMethods):
    """A language model, loaded from a GGUF file and ready to run.

    Every method may be called from any thread; calls that overlap share steps of the engine. The
    GIL is released while it computes, and Ctrl-C ends a call within 100 ms (loading: 1 s).

    Parameters
    ----------
    path : str or os.PathLike
        The file; of a split set any part. ``"demo"`` is the model that ships in the package.
    n_ctx : int
        Most tokens one sequence can have.
    kv_tokens : int or None
        Tokens the KV cache of all sequences holds together, at least ``n_ctx``. None: twice
        ``n_ctx`` where memory allows it. Memory is taken only as it is used.
    threads : int or None
        CPU threads. None: all this process may use.
    backend : str
        ``"auto"`` or ``"cpu"``.
    deterministic : bool
        The same bytes for any number of threads, split of a prompt, and company in a batch, and on
        any x86 CPU. Costs some speed: without it, MLA attention of quantised models multiplies in
        bf16 where the CPU can (the environment's ``MOESAIC_BF16=0`` keeps it from that).
    progress : None, bool or callable
        None: a bar for loading and long prefills on a terminal or in a notebook. False: none.
        A callable gets ``(stage, done, total)`` with stage ``"load"`` (bytes) or ``"prefill"``
        (tokens).
    kv_type : {"f16", "f32", "q8_0"}
        Element type of the KV cache. ``"q8_0"`` takes about half the memory of ``"f16"`` and
        rounds cached rows to 8 bits in blocks of 32.
    overrides : Mapping of str to bool, int, float or str, or None
        Keys of the file's metadata that have other values, as if they stood in the file:
        ``{"expert_used_count": 4}``. Names with the architecture's prefix or without it; only
        those that a model of its kind reads. Another value makes another :attr:`fingerprint`.

    Raises
    ------
    FormatError
        The file is damaged, or of a kind that Moesaic does not run; the message says where.
    OutOfMemoryError
        It does not fit; the message says what would.
    ArgumentError, IoError
        A bad option; the operating system refused.

    Examples
    --------
    >>> import moesaic
    >>> m = moesaic.Model.demo()
    >>> m.config.arch
    'deepseek2'
    >>> g = m.generate("In the beginning", max_tokens=8, temperature=0)
    >>> len(g.tokens)
    8
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        kv_tokens: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        deterministic: bool = False,
        progress: Progress = None,
        kv_type: str = "f16",
        overrides: Overrides | None = None,
    ) -> None:
        where = "Model"
        path = located(path, where)
        encoded_path(path, where)
        deterministic = flag(deterministic, "deterministic", where)
        integer(n_ctx, "n_ctx", where, 1, 2**30)
        if kv_tokens is not None:
            integer(kv_tokens, "kv_tokens", where, 1, 2**40)
        if threads is not None:
            integer(threads, "threads", where, 1, _MAX_THREADS)
        _one_of(backend, "backend", ["auto", *_core.available_backends()])
        _one_of(kv_type, "kv_type", KV_TYPES)
        check_progress(progress)
        set_keys = checked(overrides, where)
        file = GGUF(path)
        with Reporter(progress, "load") as report:
            engine = _core.load_model(
                file=file._file.get(),
                n_ctx=n_ctx,
                kv_tokens=kv_tokens or 0,
                threads=threads or 0,
                backend=backend,
                deterministic=deterministic,
                kv_type=kv_type,
                overrides=set_keys,
                progress=report.update if report.active else None,
            )
        self._adopt(
            engine,
            file,
            path=os.fspath(path),
            fingerprint=Fingerprint(file._file.get(), overrides=set_keys),
            deterministic=deterministic,
            progress=progress,
            overrides=Applied.to(file, set_keys),
            stacklevel=3,
        )

    @classmethod
    def _from_core(
        cls: type[_T],
        engine: _core.Engine,
        file: ModelFile,
        *,
        path: str,
        deterministic: bool = False,
        progress: Progress = None,
        overrides: Applied | None = None,
        stacklevel: int = 2,
    ) -> _T:
        """Make a model of an engine that runs already, wherever its layers are.

        Parameters
        ----------
        engine : _core.Engine
            Owned by the model from now on: ``close()`` closes it.
        file : ModelFile
            The header of the model's file, owned likewise.
        path : str
            What ``.path`` says; need not exist here.
        deterministic : bool
            How the engine was loaded.
        progress : None, bool or callable
            As for :class:`Model`, for long prefills.
        overrides : Applied or None
            What it was loaded with.
        stacklevel : int
            Whom a warning about ``n_ctx`` points at: 1 is who calls this, 2 who called that.
        """
        model = cls.__new__(cls)
        model._adopt(
            engine,
            file,
            path=path,
            fingerprint=Fingerprint(known=engine.fingerprint) if engine.fingerprint else None,
            deterministic=deterministic,
            progress=check_progress(progress),
            overrides=overrides or Applied(),
            stacklevel=stacklevel + 2,
        )
        return model

    @classmethod
    def demo(
        cls: type[_T],
        *,
        n_ctx: int = 512,
        kv_tokens: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        deterministic: bool = True,
        progress: Progress = None,
        kv_type: str = "f16",
        overrides: Overrides | None = None,
    ) -> _T:
        """Load the small mixture-of-experts model that ships in the package.

        Parameters
        ----------
        n_ctx, kv_tokens, threads, backend, deterministic, progress, kv_type, overrides
            As for :class:`Model`; ``n_ctx`` is 512, the length the model was trained for, and
            ``deterministic`` is on, so that what is shown is what one sees.

        Returns
        -------
        Model
            Some 12 MB, loaded in a fraction of a second.

        Raises
        ------
        ArgumentError, OutOfMemoryError
            As for :class:`Model`.

        Examples
        --------
        >>> import moesaic
        >>> moesaic.Model.demo().config.n_experts > 0
        True
        """
        with resources.as_file(resources.files("moesaic") / "data" / "demo.gguf") as path:
            return cls(
                path,
                n_ctx=n_ctx,
                kv_tokens=kv_tokens,
                threads=threads,
                backend=backend,
                deterministic=deterministic,
                progress=progress,
                kv_type=kv_type,
                overrides=overrides,
            )


# What completion and help() show: every option with its default.
for _owner, _names in ((Model, ("generate", "stream", "chat")), (Session, ("generate", "stream"))):
    for _name in _names:
        _method = getattr(_owner, _name)
        _method.__signature__ = spelled_out(_method)


def _one_of(value: Any, name: str, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        choices = ", ".join(f'"{k}"' for k in dict.fromkeys(known))
        raise ArgumentError(f"[Model] {name}: got {value!r}, need one of {choices}")
    return value
