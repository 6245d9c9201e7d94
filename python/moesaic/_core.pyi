"""
Moesaic's C++ core (private: use the moesaic package).
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing

__all__: list[str] = [
    "Batch",
    "ClusterKey",
    "Coordinator",
    "Engine",
    "GGUFFile",
    "GGUFWriter",
    "HeldModelInfo",
    "NewsBoard",
    "NodeInfo",
    "PlanModel",
    "RequestSpec",
    "SamplerSpec",
    "Session",
    "Worker",
    "available_backends",
    "available_cpus",
    "available_isas",
    "available_memory_bytes",
    "check_plan",
    "connect_cluster",
    "dequantize",
    "describe",
    "engine_config",
    "fingerprint",
    "forbid_core_dumps",
    "generation_spec",
    "isa",
    "load_model",
    "load_session",
    "measure",
    "memory_need",
    "open_session",
    "overridden",
    "plan",
    "qtype_ids",
    "qtypes",
    "quantize",
    "replaceable_by_others",
    "take_environment",
    "token_ids",
]

class GGUFFile:
    """
    An open GGUF file set (private: use moesaic.GGUF).
    """
    def __init__(self, path: bytes) -> None:
        """
        Open a file by its encoded path.
        """
    def dequantize(
        self,
        index: typing.SupportsInt | typing.SupportsIndex,
        begin: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Entries of the first axis as float32.
        """
    def keys(self) -> list[str]:
        """
        Metadata keys in file order.
        """
    def raw(
        self, index: typing.SupportsInt | typing.SupportsIndex
    ) -> numpy.typing.NDArray[numpy.uint8]:
        """
        A tensor's bytes: read-only, zero-copy.
        """
    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int]]:
        """
        (name, shape in NumPy order, element type, bytes) of every tensor.
        """
    def value(self, key: str) -> typing.Any:
        """
        A metadata value; KeyError when absent.
        """
    def value_type(self, key: str) -> str:
        """
        The GGUF type of a metadata value, like "u32" or "array[string]".
        """
    @property
    def alignment(self) -> int: ...
    @property
    def paths(self) -> list[bytes]:
        """
        Encoded paths of the parts.
        """
    @property
    def version(self) -> int: ...

class GGUFWriter:
    """
    Writes a GGUF file (private: use moesaic.write_gguf).
    """
    def __init__(self, alignment: typing.SupportsInt | typing.SupportsIndex = 32) -> None: ...
    def add_array(self, key: str, type: str, values: numpy.ndarray) -> None: ...
    def add_bool(self, key: str, value: bool) -> None: ...
    def add_float(
        self, key: str, type: str, value: typing.SupportsFloat | typing.SupportsIndex
    ) -> None: ...
    def add_int(
        self, key: str, type: str, value: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def add_string(self, key: str, value: str) -> None: ...
    def add_strings(self, key: str, values: collections.abc.Sequence[str]) -> None: ...
    def add_tensor(
        self,
        name: str,
        qtype: str,
        shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        raw: typing.Any,
    ) -> None: ...
    def add_uint(
        self, key: str, type: str, value: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def write(self, path: bytes) -> None:
        """
        Write to an encoded path.
        """

class Engine:
    """
    A loaded model and its scheduler (private: use moesaic.Model).
    """
    def check_usable(self, where: str) -> None:
        """
        Raise ClosedError after close() and in a forked child.
        """
    def clear_cache(self) -> None: ...
    def close(self) -> None:
        """
        End what runs and free the model; idempotent.
        """
    def stats(self) -> dict[str, typing.Any]: ...
    @property
    def capture_names(self) -> list[str]: ...
    @property
    def closed(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def kv_tokens(self) -> int: ...
    @property
    def max_step_rows(self) -> int: ...
    @property
    def memory(self) -> dict[str, typing.Any]: ...
    @property
    def n_ctx(self) -> int: ...

class Session:
    """
    A sequence's KV cache (private: use moesaic.Session).
    """
    def close(self) -> None: ...
    def fork(self, n: typing.SupportsInt | typing.SupportsIndex) -> Session: ...
    def save(self, path: bytes, fingerprint: str) -> None:
        """
        Write to an encoded path, with the fingerprint of the model's weights.
        """
    def truncate(self, n: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]: ...

class SamplerSpec:
    """
    How the next token is chosen (private).
    """
    def __init__(self) -> None: ...
    @property
    def frequency_penalty(self) -> float: ...
    @frequency_penalty.setter
    def frequency_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...
    @logit_bias.setter
    def logit_bias(
        self,
        arg0: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsFloat | typing.SupportsIndex,
            ]
        ],
    ) -> None: ...
    @property
    def min_p(self) -> float: ...
    @min_p.setter
    def min_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def n_logprobs(self) -> int: ...
    @n_logprobs.setter
    def n_logprobs(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def penalty_last_n(self) -> int: ...
    @penalty_last_n.setter
    def penalty_last_n(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def presence_penalty(self) -> float: ...
    @presence_penalty.setter
    def presence_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def repeat_penalty(self) -> float: ...
    @repeat_penalty.setter
    def repeat_penalty(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def temperature(self) -> float: ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def top_k(self) -> int: ...
    @top_k.setter
    def top_k(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def top_p(self) -> float: ...
    @top_p.setter
    def top_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...
    @property
    def typical_p(self) -> float: ...
    @typical_p.setter
    def typical_p(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None: ...

class RequestSpec:
    """
    One sequence's work (private).
    """
    def __init__(
        self,
        *,
        where: str,
        tokens: typing.Any,
        logits: str = "none",
        session: Session | None = None,
        targets: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
            ]
        ] = [],
        capture: collections.abc.Sequence[str] = [],
        reuse: bool = False,
        priority: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...

class Batch:
    """
    The requests of one call (private).
    """
    def __init__(self, engine: Engine, specs: collections.abc.Sequence[RequestSpec]) -> None:
        """
        Submit them all, or none.
        """
    def __len__(self) -> int: ...
    def choose(self, index: typing.SupportsInt | typing.SupportsIndex, row: typing.Any) -> None:
        """
        Answer a row of logits: the token is sampled from it.
        """
    def finish(
        self, n_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None:
        """
        End them all, as stop() does, and wait until the engine has let go of them.
        """
    def outcome(self, index: typing.SupportsInt | typing.SupportsIndex) -> dict[str, typing.Any]:
        """
        The end of a request; raises its error.
        """
    def settle(self) -> None:
        """
        Cancel all and wait until the engine has let go of them.
        """
    def stop(
        self,
        index: typing.SupportsInt | typing.SupportsIndex,
        n_tokens: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        End a generation; a session keeps its first n tokens.
        """
    def take(self, index: typing.SupportsInt | typing.SupportsIndex) -> dict[str, typing.Any]:
        """
        What has happened since the last call.
        """
    def wait(self, seconds: typing.SupportsFloat | typing.SupportsIndex = 3600.0) -> list[int]:
        """
        Indices of requests with news; hears Ctrl-C.
        """

class PlanModel:
    """
    A model to plan for, of its headers alone.
    """
    @staticmethod
    def from_gguf(file: GGUFFile, overrides: dict[str, typing.Any] = {}) -> PlanModel:
        """
        Of an open file, which may be without weights.
        """
    @staticmethod
    def from_headers(headers: bytes, name: str, overrides: dict[str, typing.Any] = {}) -> PlanModel:
        """
        Of the headers of all parts, one after the other.
        """
    def __init__(self, path: bytes, overrides: dict[str, typing.Any] = {}) -> None:
        """
        Of a file by its encoded path.
        """
    @property
    def n_ctx_train(self) -> int: ...
    @property
    def n_layers(self) -> int: ...

class ClusterKey:
    """
    Who has it is a member of the cluster (private).
    """
    @staticmethod
    def generate(path: bytes) -> None:
        """
        Write a new key to a new file, mode 0600.
        """
    @staticmethod
    def parse(text: bytes) -> ClusterKey:
        """
        Of the text of a key file: 64 hexadecimal digits, or two such lines.
        """
    @staticmethod
    def random() -> ClusterKey: ...
    @staticmethod
    def read(path: bytes) -> ClusterKey:
        """
        Of a file of mode 0600, by its encoded path.
        """
    def __repr__(self) -> str: ...
    def name(self) -> str:
        """
        Of the key in use, for logs: tells nothing about it.
        """
    def text(self) -> bytes: ...

class Worker:
    """
    A running worker (private: the moesaic worker command).
    """
    def __init__(
        self,
        *,
        listen: str,
        advertise: str,
        key: ClusterKey | None,
        plain_beyond_loopback: bool,
        models: bytes,
        cache: bytes,
        cache_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        memory_bytes: typing.SupportsInt | typing.SupportsIndex,
        read_bytes_per_s: typing.SupportsFloat | typing.SupportsIndex,
        matmul_ops_per_s: typing.SupportsFloat | typing.SupportsIndex,
        threads: typing.SupportsInt | typing.SupportsIndex,
        backend: str,
        release: str,
        ready_text: str = "",
        ready_fields: collections.abc.Sequence[
            tuple[
                str,
                str
                | typing.SupportsInt
                | typing.SupportsIndex
                | typing.SupportsFloat
                | typing.SupportsIndex,
            ]
        ] = [],
    ) -> None:
        """
        Listens when it returns. Folders are encoded paths, empty for none.
        """
    def close(self) -> None:
        """
        End all work and wait for it; idempotent.
        """
    def next_event(
        self, timeout_s: typing.SupportsFloat | typing.SupportsIndex
    ) -> tuple[str, str, list[tuple[str, str | int | float]]] | None:
        """
        (event, text, fields) of the log; None when the time is over, or after close().
        """
    @property
    def address(self) -> str: ...
    @property
    def stopped(self) -> bool: ...

class HeldModelInfo:
    """
    A model of which a worker holds layers (private).
    """
    @property
    def identity(self) -> str: ...
    @property
    def layer_begin(self) -> int: ...
    @property
    def layer_end(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def sessions(self) -> int: ...
    @property
    def weights_bytes(self) -> int: ...

class NodeInfo:
    """
    What a worker said last (private: use moesaic.Node).
    """
    @property
    def address(self) -> str: ...
    @property
    def bytes_read_weights(self) -> int: ...
    @property
    def bytes_received_activations(self) -> int: ...
    @property
    def bytes_sent_activations(self) -> int: ...
    @property
    def encrypted(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def link_bytes_per_s(self) -> float: ...
    @property
    def matmul_ops_per_s(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def memory_free_bytes(self) -> int: ...
    @property
    def models(self) -> list[HeldModelInfo]: ...
    @property
    def pid(self) -> int: ...
    @property
    def read_bytes_per_s(self) -> float: ...
    @property
    def release(self) -> str: ...
    @property
    def rtt_s(self) -> float: ...
    @property
    def state(self) -> str: ...
    @property
    def threads(self) -> int: ...

class NewsBoard:
    """
    News of a cluster's models (private: use the logger of moesaic).
    """
    def __init__(self) -> None: ...
    def close(self) -> None:
        """
        Take no more news; next() returns at once.
        """
    def next(
        self, seconds: typing.SupportsFloat | typing.SupportsIndex
    ) -> tuple[int, str, str, str, float, float] | None:
        """
        The next news, or None when the time is up or the board is closed.
        """
    @property
    def closed(self) -> bool:
        """
        Whether it was closed.
        """

class Coordinator:
    """
    Links to workers (private: use moesaic.Cluster).
    """
    def add(self, address: str) -> None:
        """
        Link to one more worker.
        """
    def close(self) -> None:
        """
        Close the links; deployments end. Idempotent.
        """
    def deploy(
        self,
        *,
        file: GGUFFile,
        plan: dict[str, typing.Any],
        n_ctx: typing.SupportsInt | typing.SupportsIndex,
        kv_tokens: typing.SupportsInt | typing.SupportsIndex,
        deterministic: bool,
        kv_type: str,
        on_loss: str,
        wait_s: typing.SupportsFloat | typing.SupportsIndex,
        hidden_f16: bool,
        verify: str,
        micro_batch_rows: typing.SupportsInt | typing.SupportsIndex,
        overrides: dict[str, typing.Any],
        news: NewsBoard,
        news_id: typing.SupportsInt | typing.SupportsIndex,
        progress: collections.abc.Callable[[str, str, int, int], typing.Any] | None = None,
    ) -> Engine:
        """
        Load a model on the workers as the plan says.
        """
    def facts(self) -> list[dict[str, typing.Any]]:
        """
        What a plan needs to know of every worker.
        """
    def nodes(self, measure: bool) -> list[NodeInfo]:
        """
        Ask every worker; dials lost ones again.
        """
    def remote_file(self, name: str) -> GGUFFile:
        """
        The headers of a file that workers have.
        """
    def unload(self, model: str) -> list[NodeInfo]:
        """
        Let workers drop unused weights, of one model or (empty) of all.
        """

def _throw(name: str, message: str) -> None:
    """
    Throw the core's error of that name (for tests of the translation).
    """

def available_backends() -> list[str]:
    """
    Names accepted by Model(backend=...).
    """

def available_cpus() -> int:
    """
    CPUs this process may use (affinity and cgroup quota).
    """

def available_isas() -> list[str]:
    """
    CPU tables this build has and this machine can run, slowest first.
    """

def available_memory_bytes() -> int:
    """
    Bytes of memory this process could still take (MemAvailable, cgroup limit).
    """

def check_plan(plan: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """
    A plan's dict with every value checked and of its type.
    """

def connect_cluster(
    *,
    addresses: collections.abc.Sequence[str],
    key: ClusterKey | None,
    plain_beyond_loopback: bool,
    release: str,
    cache: bytes,
) -> Coordinator:
    """
    Link to all workers.
    """

def dequantize(
    raw: typing.Any,
    qtype: str,
    shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    threads: typing.SupportsInt | typing.SupportsIndex = 0,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Decode bytes to float32.
    """

def describe(path: bytes, overrides: dict[str, typing.Any] = {}) -> dict[str, typing.Any]:
    """
    A file's configuration, read from its headers alone.
    """

def engine_config(engine: Engine) -> dict[str, typing.Any]:
    """
    A loaded model's configuration.
    """

def fingerprint(file: GGUFFile, cache: bytes, overrides: dict[str, typing.Any] = {}) -> str:
    """
    Digest of a file's headers and weights, in hex; reads what no digest is remembered of in the cache's folder (an encoded path; empty: none).
    """

def forbid_core_dumps() -> None:
    """
    From now on this process leaves no core dump, and only root can attach to it.
    """

def generation_spec(
    *,
    where: str,
    tokens: typing.Any,
    sampler: SamplerSpec,
    max_tokens: typing.SupportsInt | typing.SupportsIndex,
    stop_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    external: bool = False,
    at_end: bool = False,
    capture: collections.abc.Sequence[str] = [],
    reuse: bool = True,
    priority: typing.SupportsInt | typing.SupportsIndex = 0,
    session: Session | None = None,
) -> RequestSpec:
    """
    A RequestSpec that generates.
    """

def isa() -> str:
    """
    The CPU table in use (MOESAIC_ISA forces one).
    """

def load_model(
    *,
    file: GGUFFile,
    n_ctx: typing.SupportsInt | typing.SupportsIndex,
    kv_tokens: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
    backend: str,
    deterministic: bool,
    kv_type: str,
    overrides: dict[str, typing.Any] = {},
    progress: collections.abc.Callable[[int, int], typing.Any] | None = None,
) -> Engine:
    """
    Load an open GGUF file; kv_tokens 0 and threads 0 are automatic.
    """

def load_session(engine: Engine, path: bytes, fingerprint: str) -> Session:
    """
    Read from an encoded path what was saved with these weights.
    """

def measure(threads: typing.SupportsInt | typing.SupportsIndex) -> tuple[float, float]:
    """
    This machine's (weights bytes per second, int8 operations per second).
    """

def memory_need(
    path: bytes,
    n_ctx: typing.SupportsInt | typing.SupportsIndex,
    overrides: dict[str, typing.Any] = {},
) -> dict[str, typing.Any]:
    """
    Bytes that running a file would take; nothing is loaded.
    """

def open_session(engine: Engine) -> Session: ...
def overridden(file: GGUFFile, overrides: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """
    Whole names and values, as the file's types have them, of overrides that suit a file.
    """

def plan(
    model: PlanModel,
    nodes: collections.abc.Sequence[dict[str, typing.Any]],
    options: dict[str, typing.Any],
    layer_ends: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
) -> dict[str, typing.Any]:
    """
    A plan as a dict: the best one, or that with the given end of each node's layers.
    """

def qtype_ids() -> dict[str, int]:
    """
    Element types by name, as a file numbers them.
    """

def qtypes() -> list[tuple[str, int, int, bool]]:
    """
    (name, elements per block, bytes per block, can be written) of every element type.
    """

def quantize(
    array: typing.Any, qtype: str, threads: typing.SupportsInt | typing.SupportsIndex = 0
) -> numpy.typing.NDArray[numpy.uint8]:
    """
    Encode floats; uint8 with the last axis in bytes.
    """

def replaceable_by_others(folder: bytes) -> str:
    """
    Why other users may replace what lies in a folder; empty when they cannot.
    """

def take_environment(name: str) -> bytes | None:
    """
    Remove a variable from the environment, also from what the kernel shows in /proc/PID/environ, and return its bytes; None when it is not set or empty.
    """

def token_ids(
    tokens: typing.Any, vocab: typing.SupportsInt | typing.SupportsIndex, where: str
) -> numpy.typing.NDArray[numpy.int32]:
    """
    Integers of any type, range-checked, as int32 (n,).
    """
