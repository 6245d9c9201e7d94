"""Cluster: a set of machines that run one model together.

Here: what callers may say, and who owns what. The work is the core's (cpp/cluster); workers are
started by people or by launcher.py.
"""

from __future__ import annotations

import html
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from moesaic import _core
from moesaic._version import __version__
from moesaic.cluster_config import Key, read_key, resolve
from moesaic.cluster_life import Adder, end
from moesaic.cluster_options import (
    check_local,
    layer_ends,
    one_of,
    planned_ends,
    usable_cache,
)
from moesaic.cluster_options import workers as count_of
from moesaic.cluster_weights import open_file, unload
from moesaic.errors import ArgumentError, ClosedError
from moesaic.gguf import GGUF
from moesaic.inputs import KV_TYPES, real
from moesaic.launcher import LocalLauncher, undisturbed
from moesaic.model import Model
from moesaic.nodes import Node, Nodes
from moesaic.overrides import Applied, Override, Overrides, checked
from moesaic.plan import Plan, plan_options, trained_context
from moesaic.progress import Progress
from moesaic.progress import check as check_progress
from moesaic.voice import Bars, Voice

__all__ = ["Cluster"]

_T = TypeVar("_T", bound="Cluster")
_USUAL_CONTEXT = 4096
_A_WEEK_S = 7 * 24 * 3600.0

#: A cluster lives as long as a model on it, so that ``Cluster.local(2).load(path)`` is one line.
_clusters: weakref.WeakKeyDictionary[Model, Cluster] = weakref.WeakKeyDictionary()


class Cluster:
    """Workers on several machines that hold and run a model together.

    Every machine runs ``moesaic worker``; this process links to all of them, and the models that
    :meth:`load` gives run there. The workers keep what they have loaded for whoever comes next.

    Parameters
    ----------
    workers : sequence of str or str
        ``"host:port"`` of each, in the order in which they pass rows on; or the name of a cluster
        in ``clusters.toml`` of the user's config folder.
    key : str, os.PathLike, bytes, key of a launcher, or None
        The cluster's key: a file that ``moesaic keygen`` wrote, its content, or what
        ``c.launcher.key`` is. None: the named cluster's; without one only workers on this machine
        can be reached.

    Notes
    -----
    What happens while a call waits (a worker is lost, waited for, replaced, measured) goes to the
    logger ``moesaic`` and to the ``progress`` callback that :meth:`load` was given.

    Raises
    ------
    NetError, DeadlineError
        A worker cannot be reached, or has another key; the message names it.
    ProtocolError
        A worker is of a version that does not fit; the message says what to upgrade.
    ArgumentError, IoError
        An address, a name or a key is wrong; the key file cannot be read.

    See Also
    --------
    Cluster.local : workers on this machine, started and ended with the object.

    Examples
    --------
    >>> import moesaic
    >>> with moesaic.Cluster.local(2) as c:
    ...     m = c.load(moesaic.Model.demo().path, n_ctx=256)
    ...     print(m.device, len(m.generate("In the", max_tokens=4, temperature=0).tokens))
    cluster: 2 workers 4
    """

    def __init__(self, workers: str | Sequence[str], *, key: Key = None) -> None:
        addresses, key = resolve(workers, key, "Cluster")
        self._connect(addresses, read_key(key, "Cluster"), None, usable_cache())

    @classmethod
    def local(
        cls: type[_T],
        n: int,
        *,
        threads: int = 1,
        models: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        memory: int | None = None,
    ) -> _T:
        """Start workers on this machine, for tests, notebooks and first steps.

        They listen on loopback with a key of their own, and are gone within a second when the
        object is closed or no longer used, and when this process ends, however it ends.

        Parameters
        ----------
        n : int
            Workers to start.
        threads : int
            CPU threads of each.
        models : str, os.PathLike or None
            Folder in which they look for files. None: they find what :meth:`load` is given.
        cache : str, os.PathLike or None
            Folder for digests and pulled weights. None: the workers keep nothing, and this process
            remembers the digests of its files in the user's cache folder.
        memory : int or None
            Bytes that each may use for models. None: an equal share of what is free.

        Returns
        -------
        Cluster
            Linked to the workers, which are ready.

        Raises
        ------
        NetError
            A worker did not start; the message has what it said.
        ArgumentError
            A bad option.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Cluster.local(2) as c:
        ...     [node.state for node in c.nodes]
        ['idle', 'idle']
        """
        check_local(n, threads=threads, models=models, cache=cache, memory=memory)
        launcher = LocalLauncher(threads=threads, models=models, cache=cache, memory=memory)
        with ExitStack() as undo:
            undo.callback(launcher.close)
            addresses = launcher.start(n)
            cluster = cls.__new__(cls)
            folder = usable_cache() if cache is None else Path(cache)
            cluster._connect(addresses, launcher.key, launcher, folder)
            launcher.on_start = Adder(cluster)
            undo.pop_all()
        return cluster

    def _connect(
        self,
        addresses: Sequence[str],
        key: _core.ClusterKey | None,
        launcher: LocalLauncher | None,
        cache: Path | None,
    ) -> None:
        self._addresses = tuple(addresses)
        self._launcher = launcher
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self._core = _core.connect_cluster(
            addresses=list(addresses),
            key=key,
            plain_beyond_loopback=False,
            release=__version__,
            cache=b"" if cache is None else os.fsencode(cache),
        )
        self._voice = Voice()
        self._finalizer = weakref.finalize(self, end, self._core, launcher, self._voice, self._pid)

    # -- what it is --------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """``"host:port"`` of every worker, in the order in which they pass rows on."""
        return self._addresses

    @property
    def nodes(self) -> Nodes:
        """Every worker as it is now, a tuple that prints as a table.

        Each is asked, and a lost one is dialled again.
        """
        return self._ask("Cluster.nodes", measure=False)

    def measure(self) -> Nodes:
        """Return the nodes with their rates and links measured.

        Each worker measures its own rates once, which takes about a second, and remembers them in
        its cache.

        Returns
        -------
        Nodes
            As :attr:`nodes`, with ``rates`` and ``link``.
        """
        return self._ask("Cluster.measure", measure=True)

    @property
    def launcher(self) -> LocalLauncher | None:
        """Who started the workers, of :meth:`local`; None for workers that others started."""
        return self._launcher

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    # -- workers -----------------------------------------------------------------------------------

    def add(self, address: str) -> Node:
        """Link to one more worker; plans and loads from now on count on it.

        Models that are loaded stay where they are; one with ``on_loss="replan"`` may move there
        when another worker is lost. Workers that :attr:`launcher` starts are added by themselves.

        Parameters
        ----------
        address : str
            ``"host:port"``. One that is there already is dialled again if it was lost.

        Returns
        -------
        Node
            The worker, as it says it is.

        Raises
        ------
        NetError, DeadlineError
            It cannot be reached, or has another key.
        ArgumentError
            No address, or one that leads to a worker that is there under another.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Cluster.local(1) as c:
        ...     (address,) = c.launcher.start(1)  # which adds it, so that this changes nothing:
        ...     node = c.add(address)
        ...     len(c.nodes)
        2
        """
        where = "Cluster.add"
        self._check(where)
        if not isinstance(address, str) or not address:
            raise ArgumentError(f'[{where}] address: got {address!r}, need "host:port"')
        self._core.add(address)
        with self._lock:
            if address not in self._addresses:
                self._addresses += (address,)
        return next(node for node in self.nodes if node.address == address)

    def unload(self, model: Model | str | os.PathLike[str] | None = None) -> Nodes:
        """Let the workers free weights that they hold and that no model uses.

        Weights that somebody's model uses, also another coordinator's, stay.

        Parameters
        ----------
        model : Model, str, os.PathLike or None
            A model of this cluster, which is closed first; the name of a file; or an identity as
            in ``node.models``. None: all that is not in use.

        Returns
        -------
        Nodes
            As they are then.

        Raises
        ------
        ArgumentError
            Something else was given.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Cluster.local(1) as c:
        ...     m = c.load(moesaic.Model.demo().path, n_ctx=256)
        ...     held = len(c.nodes[0].models)
        ...     held, len(c.unload(m)[0].models)
        (1, 0)
        """
        where = "Cluster.unload"
        self._check(where)
        return unload(self._core, model, where)

    # -- models ------------------------------------------------------------------------------------

    def plan(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        strategy: str = "auto",
        kv_tokens: int | None = None,
        wire: str = "f32",
        kv_type: str = "f16",
        deterministic: bool = False,
        layers: Sequence[int] | None = None,
        overrides: Overrides | None = None,
    ) -> Plan:
        """Say which worker would hold what of a model, what that takes, and how fast it would be.

        Nothing is loaded; workers that have not measured themselves do so first.

        Parameters
        ----------
        path : str or os.PathLike
            A GGUF file here, or the name of one that workers have.
        n_ctx : int or None
            Most tokens of one sequence. None: 4096, or what the model was trained for where that is
            less.
        kv_tokens : int or None
            Most tokens of all sequences together. None: ``n_ctx``.
        wire, kv_type, deterministic, overrides
            As for :meth:`load`.
        layers : sequence of int, optional
            How many layers each worker gets, instead of the best cut.
        strategy : str
            ``"auto"`` or ``"pipeline"``: each worker holds a run of layers.

        Returns
        -------
        Plan
            Prints as a table; :meth:`load` takes it.

        Raises
        ------
        OutOfMemoryError
            The model does not fit; the message says which worker lacks how much, and what helps.
        NetError, DeadlineError
            A worker does not answer; the message names it.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.Cluster.local(2) as c:
        ...     plan = c.plan(moesaic.Model.demo().path, n_ctx=256)
        >>> sum(len(node.layers) for node in plan.nodes)
        5
        """
        where = "Cluster.plan"
        self._check(where)
        one_of(kv_type, "kv_type", KV_TYPES, where)
        ends = None if layers is None else layer_ends(layers, len(self._addresses), where)
        set_keys = checked(overrides, where)
        with self._open(path, where) as file:
            options = plan_options(
                n_ctx=trained_context(file, set_keys) if n_ctx is None else n_ctx,
                kv_tokens=kv_tokens,
                strategy=strategy,
                wire=wire,
                kv_type=kv_type,
                deterministic=deterministic,
                where=where,
            )
            return self._make_plan(file, options, ends, None, set_keys)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        plan: Plan | None = None,
        n_ctx: int | None = None,
        kv_tokens: int | None = None,
        deterministic: bool = False,
        on_loss: str = "raise",
        wait_seconds: float = 600.0,
        progress: Progress = None,
        kv_type: str = "f16",
        wire: str = "f32",
        verify: str = "first",
        overrides: Overrides | None = None,
    ) -> Model:
        """Load a model on the workers.

        Each worker uses its own copy of the file when it has one, and else pulls the part that it
        is to hold, once. The model is known by its :attr:`Model.fingerprint`: a file that this
        machine has not read before is read first, and a worker's copy, cache or memory with other
        weights under equal headers is named in its log and not used.

        Parameters
        ----------
        path : str or os.PathLike
            A GGUF file here (of a split set any part), or the name of one that workers have.
        plan : Plan or None
            Who holds what; None: as :meth:`plan` says.
        n_ctx, kv_tokens : int or None
            Most tokens of one sequence, and of all together. None: the plan's, and without a plan
            4096 of both.
        deterministic, kv_type, overrides
            As for :class:`Model`.
        on_loss : {"raise", "wait", "replan"}
            What happens when a worker is lost while the model works: WorkerLost is raised; or it is
            waited for; or the others take its layers. Both go on where they were. After an error
            the model and its sessions are usable: the next call links to the workers anew.
        wait_seconds : float
            How long ``"wait"`` waits after each loss before it raises WorkerLost after all.
        progress : None, bool or callable
            As for :class:`Model`; the stages of loading are what each worker does: ``"pull
            host:port"``, ``"verify host:port"``, ``"map host:port"``, ``"ready host:port"``, and
            where it waits ``"waiting for another load host:port"`` or ``"writing to disk
            host:port"`` once a second; before them comes ``"identify this machine"``. Later a
            callable also hears, on a thread of the cluster, ``"lost host:port"``, ``"waiting (600
            s)"`` (seconds, once a second), ``"re-planning"``, the stages of loading again, ``"back
            host:port"`` and ``"gave up host:port"``.
        wire : {"f32", "f16"}
            Type of the hidden rows that workers pass on. ``"f16"`` halves the traffic and changes
            the numbers a little.
        verify : {"first", "always", "never"}
            When workers read weights to hold them against their digests: of a file that is used
            first; at every load, also of what they hold in memory, of which all that is derived is
            made again; or only of a file that they have never read (what it is must be known).

        Returns
        -------
        Model
            With all methods of a model on this machine. It keeps the cluster alive, and ends with
            :meth:`close` of either.

        Raises
        ------
        OutOfMemoryError
            It does not fit; the message says which worker lacks how much, and what helps.
        WorkerLost, NetError, DeadlineError
            A worker was lost meanwhile, or does not answer; the message names it.
        FormatError, IoError, ArgumentError
            As for :class:`Model`; workers whose copies of a named file differ, or one that has only
            other weights and no source for the right ones; the message names them.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Cluster.local(2).load(moesaic.Model.demo().path, n_ctx=256)
        >>> m.generate("In the beginning", max_tokens=8, temperature=0).finish_reason
        'length'
        >>> m.close()
        """
        where = "Cluster.load"
        self._check(where)
        if plan is not None and not isinstance(plan, Plan):
            raise ArgumentError(f"[{where}] plan: got {type(plan).__name__}, need a Plan or None")
        if n_ctx is None:
            n_ctx = plan.n_ctx if plan else _USUAL_CONTEXT
        if kv_tokens is None and plan is not None:
            kv_tokens = max(n_ctx, plan.kv_tokens)
        options = plan_options(
            n_ctx=n_ctx,
            kv_tokens=kv_tokens,
            strategy="auto",
            wire=wire,
            kv_type=kv_type,
            deterministic=deterministic,
            where=where,
        )
        one_of(on_loss, "on_loss", ("raise", "wait", "replan"), where)
        one_of(kv_type, "kv_type", KV_TYPES, where)
        one_of(verify, "verify", ("first", "always", "never"), where)
        real(wait_seconds, "wait_seconds", where, 0.0, _A_WEEK_S)
        check_progress(progress)
        set_keys = checked(overrides, where)
        with ExitStack() as undo:
            file = undo.enter_context(self._open(path, where))
            ends = None if plan is None else planned_ends(plan, self._addresses, where)
            made = self._make_plan(file, options, ends, progress, set_keys)
            news_id = self._voice.add(progress, on_loss)
            undo.callback(self._voice.forget, news_id)
            with Bars(progress) as bars:
                engine = self._core.deploy(
                    file=file._file.get(),
                    plan=made.to_dict(),
                    n_ctx=n_ctx,
                    kv_tokens=made.kv_tokens,
                    deterministic=bool(deterministic),
                    kv_type=kv_type,
                    on_loss=on_loss,
                    wait_s=float(wait_seconds),
                    hidden_f16=wire == "f16",
                    verify=verify,
                    micro_batch_rows=plan.micro_batch_rows if plan else 0,
                    overrides=set_keys,
                    news=self._voice.board,
                    news_id=news_id,
                    progress=bars.update if bars.active else None,
                )
            undo.pop_all()
        model = Model._from_core(
            engine,
            file,
            path=os.fspath(path),
            deterministic=deterministic,
            progress=progress,
            overrides=Applied.to(file, set_keys),
            stacklevel=2,
        )
        weakref.finalize(model, self._voice.forget, news_id)
        with self._lock:
            closed = self._closed
            self._models.add(model)
        if closed:  # meanwhile, by another thread
            model.close()
            self._check(where)
        _clusters[model] = self
        return model

    def _open(self, path: str | os.PathLike[str], where: str) -> GGUF:
        """Open a file that is here, or the headers of one that workers have."""
        return open_file(self._core, self._launcher, path, where)

    def _make_plan(
        self,
        file: GGUF,
        options: dict[str, Any],
        ends: list[int] | None,
        progress: Progress,
        overrides: dict[str, Override],
    ) -> Plan:
        """Make the best plan, or evaluate one with these layers, here and now."""
        n_new = sum(node.rates is None and node.state != "lost" for node in self.nodes)
        if n_new:
            Voice.say(f"measuring {count_of(n_new)}", progress)
        model = _core.PlanModel.from_gguf(file._file.get(), overrides)
        return Plan.from_dict(_core.plan(model, self._core.facts(), options, ends))

    # -- its life ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the models that it runs and the links; end local workers. May be called again."""
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                self._closed = True
                return
            self._closed = True
            models = list(self._models)

        def end() -> None:
            for model in models:
                model.close()
            self._finalizer()

        undisturbed(end)

    def __enter__(self: _T) -> _T:
        self._check("Cluster")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return f"Cluster({list(self._addresses)}, closed)"
        kind = "on this machine" if self._launcher is not None else ", ".join(self._addresses)
        return f"Cluster({count_of(len(self._addresses))}: {kind})"

    def _repr_html_(self) -> str:
        if self._closed:
            return f"<pre>{html.escape(repr(self))}</pre>"
        return f"<b>{html.escape(repr(self))}</b>{self.nodes._repr_html_()}"

    def _ask(self, where: str, *, measure: bool) -> Nodes:
        self._check(where)
        return Nodes(Node._from_core(info) for info in self._core.nodes(measure))

    def _check(self, where: str) -> None:
        if self._closed:
            raise ClosedError(f"[{where}] the cluster was closed; make another")
        if os.getpid() != self._pid:
            raise ClosedError(
                f"[{where}] this process was forked after the cluster was made, and its links did "
                "not come along; make the cluster in this process"
            )
