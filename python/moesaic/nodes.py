"""Node: what a cluster knows of one worker, and tables of them for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic._tables import html_table, text_table

if TYPE_CHECKING:
    from moesaic import _core

__all__ = ["HeldModel", "Node", "Nodes", "Rates", "node_rows", "nodes_html", "nodes_text"]


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a worker was when it measured itself."""

    read: float
    """Bytes of weights it reads from memory in a second, all threads."""
    matmul: float
    """Operations (multiplies and adds) on 8-bit integers in a second, all threads."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """Layers of a model that a worker keeps in memory."""

    name: str
    """Of its file."""
    identity: str
    """SHA-256 over the headers of its files, hexadecimal: the same model, whatever the name."""
    layers: range
    """Of the model, from 0."""
    weights_bytes: int
    """What they take."""
    sessions: int
    """Sequences that have a KV cache there."""


@dataclass(frozen=True, slots=True)
class Node:
    """One worker of a cluster as it was when asked. Bytes, seconds, bytes in a second."""

    address: str
    """``"host:port"``, as it was dialled."""
    host: str
    """What the machine calls itself."""
    pid: int
    """Of the worker's process on that machine."""
    release: str
    """Its version of Moesaic."""
    isa: str
    """The CPU table it computes with."""
    threads: int
    """That it computes with."""
    memory: int
    """Bytes that models may use there."""
    memory_free: int
    """Bytes of them that none uses."""
    rates: Rates | None
    """None: not measured yet; :meth:`moesaic.Cluster.measure` does it."""
    rtt: float | None
    """Seconds for a small frame there and its answer back."""
    link: float | None
    """Bytes in a second from here to there; None: not measured yet."""
    state: str
    """``"idle"``, ``"loading"``, ``"ready"`` or ``"lost"``."""
    error: str
    """Why, when it is lost."""
    encrypted: bool
    """Whether the link to it is (it is, with a key)."""
    models: tuple[HeldModel, ...]
    """What it holds."""
    bytes_sent: int
    """Activations it has passed on."""
    bytes_received: int
    """Activations it was given."""
    bytes_read: int
    """Weights it has read from disk or from others, ever."""

    @classmethod
    def _from_core(cls, info: _core.NodeInfo) -> Node:
        """Make one of what the core knows; zeros that mean "unknown" become None."""
        measured = info.read_bytes_per_s > 0 and info.matmul_ops_per_s > 0
        return cls(
            address=info.address,
            host=info.host,
            pid=info.pid,
            release=info.release,
            isa=info.isa,
            threads=info.threads,
            memory=info.memory_bytes,
            memory_free=info.memory_free_bytes,
            rates=Rates(info.read_bytes_per_s, info.matmul_ops_per_s) if measured else None,
            rtt=info.rtt_s or None,
            link=info.link_bytes_per_s or None,
            state=info.state,
            error=info.error,
            encrypted=info.encrypted,
            models=tuple(
                HeldModel(
                    name=held.name,
                    identity=held.identity,
                    layers=range(held.layer_begin, held.layer_end),
                    weights_bytes=held.weights_bytes,
                    sessions=held.sessions,
                )
                for held in info.models
            ),
            bytes_sent=info.bytes_sent_activations,
            bytes_received=info.bytes_received_activations,
            bytes_read=info.bytes_read_weights,
        )


class Nodes(tuple[Node, ...]):
    """The workers of a cluster, in order; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return nodes_text(self)

    def __repr__(self) -> str:
        return nodes_text(self)

    def _repr_html_(self) -> str:
        return nodes_html(self)


_HEADS = ("node", "state", "host", "cpu", "memory", "free", "rtt", "link", "read", "int8", "holds")


def node_rows(nodes: Sequence[Node]) -> list[tuple[str, ...]]:
    """Return a table, its heads first."""
    return [_HEADS, *(_row(node) for node in nodes)]


def _row(node: Node) -> tuple[str, ...]:
    lost = node.state == "lost"
    return (
        node.address,
        node.state if lost or node.encrypted else f"{node.state}, NO KEY",
        node.host,
        "" if lost else f"{node.threads} x {node.isa}",
        "" if lost else _amount(node.memory, "B"),
        "" if lost else _amount(node.memory_free, "B"),
        "" if node.rtt is None else f"{node.rtt * 1e3:.2f} ms",
        "" if node.link is None else _amount(node.link, "B/s"),
        "" if node.rates is None else _amount(node.rates.read, "B/s"),
        "" if node.rates is None else _amount(node.rates.matmul, "op/s"),
        node.error if lost else "; ".join(_held(model) for model in node.models),
    )


def _held(model: HeldModel) -> str:
    layers = f"{model.layers.start}-{model.layers.stop - 1}" if len(model.layers) else "none"
    sessions = f", {model.sessions} sessions" if model.sessions else ""
    return f"{model.name} layers {layers} ({_amount(model.weights_bytes, 'B')}{sessions})"


def _amount(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} T{unit}"


def nodes_text(nodes: Sequence[Node]) -> str:
    """Return the table as text."""
    return text_table(node_rows(nodes))


def nodes_html(nodes: Sequence[Node]) -> str:
    """Return the table for a notebook."""
    return html_table(node_rows(nodes))
