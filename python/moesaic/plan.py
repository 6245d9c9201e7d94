"""Plan: which machine holds which layers of a model, what that takes, how fast it will be."""

from __future__ import annotations

import difflib
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic import _core, description
from moesaic._tables import html_table, text_table
from moesaic.errors import ArgumentError, IoError, MoesaicError
from moesaic.inputs import flag, integer, real
from moesaic.model_names import located
from moesaic.overrides import Override, Overrides, checked
from moesaic.paper import Amounts, node_facts

if TYPE_CHECKING:
    from moesaic.gguf import GGUF

__all__ = ["Plan", "PlanNode", "Prediction"]


@dataclass(frozen=True, slots=True)
class PlanNode:
    """What a plan gives one node. Amounts are bytes."""

    address: str
    """``"host:port"``, or a name on paper."""
    layers: range
    """Its layers, from 0; empty when it has none to hold."""
    embed: bool
    """Whether it holds the embedding."""
    head: bool
    """Whether it holds the final norm and the head, and samples."""
    weights: int
    """Of its layers, embedding and head, with what is computed at load."""
    kv: int
    """The KV cache of its layers, filled."""
    scratch: int
    """Working memory of the largest step, and the keys that MLA keeps from step to step."""
    process: int
    """What a worker takes that holds nothing."""
    headroom: int
    """Left free on purpose."""
    memory: int
    """What the node has for models."""

    @property
    def total(self) -> int:
        """What the worker will take: weights, cache, scratch and process."""
        return self.weights + self.kv + self.scratch + self.process

    @property
    def free(self) -> int:
        """What is left beyond the headroom; below zero, the plan does not fit."""
        return self.memory - self.total - self.headroom


@dataclass(frozen=True, slots=True)
class Prediction:
    """How fast one sequence should be: a prompt of so many tokens, then decode behind it."""

    prompt_tokens: int
    """Length of the prompt."""
    prefill_tokens_per_s: float
    """Rate of running it."""
    decode_tokens_per_s: float
    """Rate of generating after it."""
    time_to_first_token_s: float
    """Seconds from the prompt to the first token."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of a model over machines: made by ``Cluster.plan`` or, on paper, by ``on_paper``.

    Printing it gives a table. ``to_dict()`` and ``from_dict()`` turn it into plain data and back,
    so that layers can be moved by hand; ``Cluster.load(plan=...)`` checks what it is given.

    Attributes
    ----------
    model : str
        The model's name.
    strategy : str
        ``"pipeline"``: each node holds a run of layers.
    n_ctx : int
        Tokens of the longest sequence.
    kv_tokens : int
        Tokens of the KV cache, of all sequences together.
    micro_batch_rows : int
        Rows of a prompt that travel together through the pipeline.
    nodes : tuple of PlanNode
        In the order of the pipeline.
    predictions : tuple of Prediction
        For prompts of 512, 4,096 and 16,384 tokens as far as n_ctx goes, and of n_ctx where that is
        in between.
    """

    model: str
    strategy: str
    n_ctx: int
    kv_tokens: int
    micro_batch_rows: int
    nodes: tuple[PlanNode, ...]
    predictions: tuple[Prediction, ...]

    @classmethod
    def on_paper(
        cls,
        model: str | os.PathLike[str],
        *,
        nodes: int | Sequence[str] = 1,
        memory: Amounts | None = None,
        bandwidth: Amounts | None = None,
        matmul: Amounts | None = None,
        rtt: Amounts = "0.2ms",
        link: Amounts = "1Gb",
        threads: int | Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        n_ctx: int | None = None,
        kv_tokens: int | None = None,
        strategy: str = "auto",
        wire: str = "f32",
        kv_type: str = "f16",
        deterministic: bool = False,
        headroom: float = 0.05,
        overrides: Overrides | None = None,
    ) -> Plan:
        """Plan for machines that need not be there, from headers alone.

        Parameters
        ----------
        model : str or os.PathLike
            A GGUF file, a description (``moesaic inspect FILE --json > file.json``), or the name of
            one that ships: ``"kimi-k2.5"``, or ``"demo"``.
        nodes : int or sequence of str
            How many, or their names, in the order of the pipeline.
        memory, bandwidth, matmul : number, str, or one for each node
            Memory for models (``"128G"``), rate of reading it (``"215GB/s"``), int8 operations a
            second (``"30T"``): text with a unit, or a number of bytes and operations. None: as this
            machine has, measured now.
        rtt, link : number, str, or one for each node
            Round trip to the next node (``"0.2ms"``) and the link's rate (``"5Gb"`` are bits,
            ``"600MB"`` bytes a second).
        threads : int or one for each node
            None: as many CPUs as this process may use.
        layers : sequence of int, optional
            How many layers each node gets, instead of the best cut.
        n_ctx : int or None
            Tokens of the longest sequence. None: 4096, or what the model was trained for where
            that is less, as ``moesaic run`` takes it.
        kv_tokens : int or None
            Tokens of the whole cache. None: ``n_ctx``.
        strategy : str
            ``"auto"`` or ``"pipeline"``.
        wire : str
            Hidden rows travel as ``"f32"`` or ``"f16"``.
        kv_type : str
            ``"f16"`` or ``"f32"``.
        deterministic : bool
            As of Model: MLA keeps one form for any number of rows.
        headroom : float
            Share of each node's memory that stays free.
        overrides : Mapping of str to bool, int, float or str, or None
            Keys of the file that have other values, as for :class:`Model`.

        Returns
        -------
        Plan

        Raises
        ------
        OutOfMemoryError
            It does not fit: which node lacks how much, and what would help.
        ArgumentError
            A value that makes no sense.
        FormatError
            A file that is no model's.

        Examples
        --------
        >>> import moesaic
        >>> p = moesaic.Plan.on_paper("kimi-k2.5", nodes=4, memory="128G", bandwidth="215G",
        ...                           matmul="30T", rtt="0.2ms", link="5Gb", threads=16)
        >>> sum(len(node.layers) for node in p.nodes)
        61
        """
        where = "plan"
        core = _core_model(model, checked(overrides, where))
        facts = node_facts(
            nodes=nodes,
            memory=memory,
            bandwidth=bandwidth,
            matmul=matmul,
            rtt=rtt,
            link=link,
            threads=threads,
            where=where,
        )
        options = plan_options(
            n_ctx=usual_context(core.n_ctx_train) if n_ctx is None else n_ctx,
            kv_tokens=kv_tokens,
            strategy=strategy,
            wire=wire,
            kv_type=kv_type,
            deterministic=deterministic,
            headroom=headroom,
        )
        ends: list[int] | None = None
        if layers is not None:
            ends = []
            for count in layers:
                ends.append((ends[-1] if ends else 0) + integer(count, "layers", where, 0, 2**31))
        return cls.from_dict(_core.plan(core, facts, options, ends))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, as JSON holds it.

        Returns
        -------
        dict
            ``"nodes"`` have ``"layers"`` as [first, end).
        """
        return {
            "model": self.model,
            "strategy": self.strategy,
            "n_ctx": self.n_ctx,
            "kv_tokens": self.kv_tokens,
            "micro_batch_rows": self.micro_batch_rows,
            "nodes": [
                {
                    "address": n.address,
                    "layers": [n.layers.start, n.layers.stop],
                    "embed": n.embed,
                    "head": n.head,
                    "weights_bytes": n.weights,
                    "kv_bytes": n.kv,
                    "scratch_bytes": n.scratch,
                    "process_bytes": n.process,
                    "headroom_bytes": n.headroom,
                    "memory_bytes": n.memory,
                }
                for n in self.nodes
            ],
            "predictions": [
                {
                    "prompt_tokens": p.prompt_tokens,
                    "prefill_tokens_per_s": p.prefill_tokens_per_s,
                    "decode_tokens_per_s": p.decode_tokens_per_s,
                    "time_to_first_token_s": p.time_to_first_token_s,
                }
                for p in self.predictions
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that ``to_dict`` gave, perhaps edited.

        Layers must go on from node to node; who embeds and who has the head follows from them.
        Amounts and predictions are taken as they are: ``Cluster.load`` makes its own.

        Parameters
        ----------
        data : Mapping
            As ``to_dict`` returns it.

        Returns
        -------
        Plan

        Raises
        ------
        ArgumentError
            Something is missing, of a wrong type, or layers do not go on.

        Examples
        --------
        >>> import moesaic
        >>> p = moesaic.Plan.on_paper("kimi-k2.5", nodes=2, memory="300G", bandwidth="200G",
        ...                           matmul="30T", threads=16)
        >>> data = p.to_dict()
        >>> data["nodes"][0]["layers"], data["nodes"][1]["layers"] = [0, 20], [20, 61]
        >>> moesaic.Plan.from_dict(data).nodes[1].layers
        range(20, 61)
        """
        if not isinstance(data, Mapping):
            raise ArgumentError(f"[Plan] got {type(data).__name__}, need a dict as of to_dict()")
        d = _core.check_plan(dict(data))
        return cls(
            model=d["model"],
            strategy=d["strategy"],
            n_ctx=d["n_ctx"],
            kv_tokens=d["kv_tokens"],
            micro_batch_rows=d["micro_batch_rows"],
            nodes=tuple(
                PlanNode(
                    address=n["address"],
                    layers=range(*n["layers"]),
                    embed=n["embed"],
                    head=n["head"],
                    weights=n["weights_bytes"],
                    kv=n["kv_bytes"],
                    scratch=n["scratch_bytes"],
                    process=n["process_bytes"],
                    headroom=n["headroom_bytes"],
                    memory=n["memory_bytes"],
                )
                for n in d["nodes"]
            ),
            predictions=tuple(Prediction(**p) for p in d["predictions"]),
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw who holds what: a bar for each node, with its layers. Needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to; None makes a figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        MoesaicError
            matplotlib is not there.

        Examples
        --------
        >>> import moesaic
        >>> p = moesaic.Plan.on_paper("kimi-k2.5", nodes=4, memory="128G", bandwidth="215G",
        ...                           matmul="30T", threads=16)
        >>> ax = p.plot()  # doctest: +SKIP
        """
        if ax is None:
            try:
                from matplotlib import pyplot as plt
            except ImportError:
                raise MoesaicError(
                    "[Plan.plot] matplotlib is not there: pip install matplotlib"
                ) from None
            _, ax = plt.subplots(figsize=(8, 1 + 0.5 * len(self.nodes)), layout="constrained")
        left = [0.0] * len(self.nodes)
        names = [n.address for n in self.nodes]
        for part, colour in _PARTS.items():
            widths = [getattr(n, part) / 1e9 for n in self.nodes]
            ax.barh(names, widths, left=left, label=_LABELS.get(part, part), color=colour)
            left = [x + w for x, w in zip(left, widths, strict=True)]
        for i, n in enumerate(self.nodes):
            ax.plot([n.memory / 1e9] * 2, [i - 0.4, i + 0.4], color="black", lw=1.5)
            ax.annotate(_layers_text(n), (0, i), (4, 0), textcoords="offset points", va="center")
        ax.invert_yaxis()
        ax.set_xlabel("GB (black line: the node's memory)")
        # The legend between title and bars, where it covers nothing.
        ax.set_title(f"{self.model}: {self.n_ctx:,} tokens of context", pad=26)
        ax.legend(
            ncols=len(_PARTS), fontsize="small", frameon=False, loc="lower center",
            bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2, columnspacing=1.2,
        )  # fmt: skip
        return ax

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.strategy}, context {self.n_ctx:,}, KV cache of "
            f"{self.kv_tokens:,} tokens, micro-batches of {self.micro_batch_rows} rows",
            "",
            _aligned(_node_rows(self.nodes)),
            "",
            _aligned(_prediction_rows(self.predictions)),
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        layers = ", ".join(f"{n.address}: {_layers_text(n)}" for n in self.nodes)
        return f"Plan({self.model!r}, {self.strategy}, {layers})"

    def _repr_html_(self) -> str:
        return (
            f"<p>{html.escape(self.model)}: {self.strategy}, context {self.n_ctx:,}, KV cache of "
            f"{self.kv_tokens:,} tokens, micro-batches of {self.micro_batch_rows} rows</p>"
            f"{html_table(_node_rows(self.nodes))}{html_table(_prediction_rows(self.predictions))}"
        )


_USUAL_CONTEXT = 4096
_ALIKE = 0.7  # of names: what two strings share, from 0 to 1
_PARTS = {
    "weights": "#4878a8",
    "kv": "#e49444",
    "scratch": "#85b6b2",
    "process": "#967662",
    "headroom": "#d9d9d9",
}
_LABELS = {"kv": "KV cache"}


def usual_context(trained: object) -> int:
    """Return a context length that suits most uses and that the model was trained for.

    Parameters
    ----------
    trained : object
        The file's context length; anything but a positive int is taken as unknown.

    Examples
    --------
    >>> usual_context(512), usual_context(131072), usual_context(None)
    (512, 4096, 4096)
    """
    if isinstance(trained, int) and trained > 0:
        return min(_USUAL_CONTEXT, trained)
    return _USUAL_CONTEXT


def trained_context(file: GGUF, overrides: Mapping[str, Override]) -> int:
    """Return :func:`usual_context` of an open file with overrides."""
    key = f"{file.metadata.get('general.architecture')}.context_length"
    trained = overrides.get(key, overrides.get("context_length", file.metadata.get(key)))
    return usual_context(trained)


def plan_options(
    *,
    n_ctx: int,
    kv_tokens: int | None,
    strategy: str,
    wire: str,
    kv_type: str,
    deterministic: bool,
    headroom: float = 0.05,
    where: str = "plan",
) -> dict[str, Any]:
    """Return the core's options of a plan, checked for their types; ranges the core checks."""
    for name, text in (("strategy", strategy), ("wire", wire), ("kv_type", kv_type)):
        if not isinstance(text, str):
            raise ArgumentError(f"[{where}] {name}: got {type(text).__name__}, need text")
    if wire not in ("f32", "f16"):
        raise ArgumentError(f'[{where}] wire: got "{wire}", need "f32" or "f16"')
    n_ctx = integer(n_ctx, "n_ctx", where, 1, 2**30)
    if kv_tokens is not None:
        kv_tokens = integer(kv_tokens, "kv_tokens", where, n_ctx, 2**32)
    return {
        "n_ctx": n_ctx,
        "kv_tokens": kv_tokens or 0,
        "strategy": strategy,
        "hidden_f16": wire == "f16",
        "kv_type": kv_type,
        "deterministic": flag(deterministic, "deterministic", where),
        "headroom": real(headroom, "headroom", where, 0, 0.99),
    }


def _core_model(
    model: str | os.PathLike[str], overrides: Mapping[str, Override]
) -> _core.PlanModel:
    """Headers of a file, or of a description."""
    try:
        path = Path(model)
    except TypeError:
        raise ArgumentError(
            f"[plan] model: got {type(model).__name__}, need a path or one of the names "
            f"{', '.join(description.SHIPPED)}"
        ) from None
    if str(model) in description.SHIPPED or path.name.endswith((".json", ".json.gz")):
        described = description.load(str(model))
        return _core.PlanModel.from_headers(
            description.header_bytes(described, path.name), path.name, dict(overrides)
        )
    near = _near_shipped(path.name)
    if near and not os.path.lexists(path):
        raise IoError(f"[plan] {model}: there is no such file here; did you mean {near}?")
    return _core.PlanModel(os.fsencode(located(model, "plan")), dict(overrides))


def _near_shipped(name: str) -> str | None:
    """Return the description that ships whose name is like this one."""
    plain = re.sub(r"[^a-z0-9.]", "", name.lower().removesuffix(".gguf"))
    for shipped in description.SHIPPED:
        known = shipped.replace("-", "")
        alike = difflib.SequenceMatcher(None, plain, known).ratio() > _ALIKE
        if len(plain) >= 3 and (known.startswith(plain) or plain.startswith(known) or alike):
            return shipped
    return None


def _gb(n_bytes: int) -> str:
    if abs(n_bytes) < 1e9:
        return f"{n_bytes / 1e6:.1f} MB" if abs(n_bytes) >= 1e5 else f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e9:.2f} GB" if abs(n_bytes) < 1e11 else f"{n_bytes / 1e9:.1f} GB"


def _layers_text(node: PlanNode) -> str:
    if not node.layers:
        return "unused"
    first, last = node.layers[0], node.layers[-1]
    text = f"{first}" if first == last else f"{first}-{last}"
    return text + (" +embed" if node.embed else "") + (" +head" if node.head else "")


def _node_rows(nodes: Sequence[PlanNode]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("node", "layers", "weights", "KV cache", "scratch", "process", "total", "headroom",
         "free", "memory")
    ]  # fmt: skip
    for n in nodes:
        amounts = (n.weights, n.kv, n.scratch, n.process, n.total, n.headroom, n.free, n.memory)
        rows.append((n.address, _layers_text(n), *map(_gb, amounts)))
    return rows


def _prediction_rows(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("prompt", "first token after", "prefill tok/s", "decode tok/s")]
    for p in predictions:
        rows.append(
            (
                f"{p.prompt_tokens:,}",
                f"{p.time_to_first_token_s:.3g} s",
                f"{p.prefill_tokens_per_s:.1f}",
                f"{p.decode_tokens_per_s:.1f}",
            )
        )
    return rows


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    return text_table(rows, right={i for i, h in enumerate(rows[0]) if i and h != "layers"})
