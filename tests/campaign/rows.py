"""The campaign's rows: RELIABILITY's table.

A row is a case that takes a rig and a number, a program that counts by itself, or Python tests. The
cases are those of tests/python/cluster; here stands how many of each make the full number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import fault_ends
import fault_files
import fault_history
import fault_identity
import fault_kills
import fault_links
import fault_others
import fault_users
from journal import Line

Case = Callable[..., dict[str, float]]
_SAID = "others live, named error within 5 s, no orphan, next load works"
_SAME = "100 % token-identical"


@dataclass(frozen=True)
class CaseRow:
    """``full`` calls of a case on a rig: "copies", "pulling", "three", "net", or "none"."""

    line: Line
    rig: str
    case: Case


@dataclass(frozen=True)
class ProgramRow:
    """A test program that takes its number from the environment, and a seed.

    A unit of that number is ``per_unit`` cases; a run has ``per_run`` cases at most. Without a
    ``variable`` the tests are run again for each unit.
    """

    line: Line
    target: str
    filter: str
    variable: str
    per_unit: int
    per_run: int


@dataclass(frozen=True)
class FuzzRow:
    """A fuzz target; cases are its runs. ``options``: of libFuzzer."""

    line: Line
    target: str
    per_run: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class PythonRow:
    """Python tests by file and expression (pytest's -k); one run of all of them is one case."""

    line: Line
    path: str
    tests: str = ""


Row = CaseRow | ProgramRow | FuzzRow | PythonRow


def _case(
    group: str, full: int, name: str, must_hold: str, rig: str, case: Case, **options: object
) -> CaseRow:
    """Return the row of a case with some of its options chosen."""
    return CaseRow(Line(name, group, full, must_hold), rig, partial(case, **options))


def _kills() -> list[Row]:
    row = partial(_case, "kill -9 (450)", 30)
    freed = "workers live, KV free within 30 s, weights not read again"
    return [
        *(
            row(
                f"kill a worker: {moment}", _SAID,
                "pulling" if moment in fault_kills.PULLED else "copies", case,
            )
            for moment, case in fault_kills.KILLS.items()
        ),
        *(
            row(
                f"kill the coordinator: {moment}", freed, "copies",
                fault_others.killed_coordinator, moment=moment,
            )
            for moment in fault_others.MOMENTS
        ),
    ]  # fmt: skip


def _resumes() -> list[Row]:
    row = partial(_case, "resume after a kill in decode (200 positions each)", 200)
    return [
        row(f"on_loss={on_loss}", _SAME, "three", fault_others.resumed, on_loss=on_loss)
        for on_loss in ("wait", "replan")
    ]


def _late_losses() -> list[Row]:
    group = "loss at 0, 1 s, patience - 1, + 1 and 10 x patience into a call (200)"
    return [
        _case(
            group, n, f"late loss, on_loss={on_loss}", must_hold,
            "three", fault_others.lost_late, on_loss=on_loss,
        )
        for on_loss, n, must_hold in (
            ("raise", 66, "WorkerLost; the next call goes on"),
            ("wait", 67, "goes on"),
            ("replan", 67, "goes on"),
        )
    ]  # fmt: skip


def _stops() -> list[Row]:
    group = "SIGSTOP (60), flapping (300), coordinators in a row (50)"
    row = partial(_case, group, 15)
    return [
        *(
            row(
                f"SIGSTOP {seconds:.0f} s",
                "nobody sees it" if seconds < 3 else "lost, fenced off when it wakes",
                "copies", fault_others.stopped, seconds=seconds,
            )
            for seconds in (1.0, 2.0, 4.0, 30.0)
        ),
        *(
            row(
                f"SIGSTOP 5 s, on_loss={on_loss}", _SAME,
                "copies", fault_others.slept_through, seconds=5.0, on_loss=on_loss,
            )
            for on_loss in ("wait", "replan")
        ),
        _case(group, 150, "flapping worker", _SAME, "copies", fault_others.flapped),
        _case(
            group, 50, "coordinators in a row", "weights not read again, the same tokens",
            "copies", fault_others.next_coordinator,
        ),
    ]  # fmt: skip


def _links() -> list[Row]:
    group = "bad links (20 of each profile)"
    row = partial(_case, group, 20)
    typed = "identical tokens or a typed error, never silently different"
    same = "identical tokens"
    profiles = {name: whole for name, (_, whole) in fault_links.PROFILES.items()}
    return [
        *(
            row(
                f"link: {profile}", same if whole else typed,
                "copies", fault_links.bad_link, profile=profile,
            )
            for profile, whole in profiles.items()
        ),
        *(
            row(
                f"link, on_loss=wait: {profile}", same,
                "copies", fault_links.bad_link_survived, profile=profile,
            )
            for profile, whole in profiles.items()
            if not whole
        ),
        *(
            row(
                f"namespaces: {profile}", same if whole else typed,
                "net", fault_links.bad_net, profile=profile,
            )
            for profile, whole in fault_links.NET_PROFILES.items()
        ),
        _case(
            group, 60, "weights over a bad link", "a good load or a typed error; then a good",
            "pulling", fault_links.harmed_load,
        ),
    ]  # fmt: skip


def _identity() -> list[Row]:
    row = partial(_case, "equal headers, other bytes (8 x 20)", 20)
    return [
        row(
            f"other weights: {kind}", "the right weights answer, or refused and named",
            "copies", fault_identity.other_weights, kind=kind,
        )
        for kind in fault_identity.KINDS
    ]  # fmt: skip


def _users() -> list[Row]:
    row = partial(_case, "a second user (9 x 20)", 20)
    return [
        row(
            f"second user: {theirs} beside the first one's {mine}",
            f"within {fault_users.SECOND_S:.0f} s, no error, each its own answers",
            "three", fault_users.second_user, mine=mine, theirs=theirs,
        )
        for mine in fault_users.MINE
        for theirs in fault_users.THEIRS
    ]  # fmt: skip


def _files() -> list[Row]:
    row = partial(_case, "SIGBUS: a file cut off, with a hole, with a read error (3 x 20)", 20)
    return [
        row(
            f"harmed file: {moment}", "IoError, the process lives, a whole file works again",
            "none", fault_files.harmed, moment=moment,
        )
        for moment in fault_files.MOMENTS
    ]  # fmt: skip


def _ends() -> list[Row]:
    row = partial(_case, "ends with an open cluster, a live stream, a save under way (12 x 10)", 30)
    return [
        row(
            f"process ends: {ending}", "within 1 s, silently; workers idle, the next load works",
            "copies", fault_ends.ended, ending=ending,
        )
        for ending in fault_ends.ENDINGS
    ]  # fmt: skip


def _tests() -> list[Row]:
    group = "tests that hold for all of a kind"
    return [
        ProgramRow(
            Line(
                "failpoints: an exception and bad_alloc at each of 32 sites", group, 64,
                "error at the caller within 5 s, next load works",
            ),
            "test_cluster", "Cluster/Failpoints.*:FailedStage.*", "", 64, 64,
        ),
        ProgramRow(
            Line(
                "a stage stopped under a live net thread", group, 20,
                "a loss within the deadline of a step, others are served",
            ),
            "test_cluster", "StuckStage.*:Standstill.*", "", 1, 2,
        ),
        ProgramRow(
            Line(
                "requests at and past every frame limit", group, 1,
                "ArgumentError for that request alone",
            ),
            "test_cluster", "FrameLimits.*:LargeRequests.*", "", 1, 1,
        ),
        PythonRow(
            Line(
                "a ticking thread beside every public call", group, 10,
                "no gap over 50 ms (GIL)",
            ),
            "tests/python/engine/test_gil.py",
        ),
        PythonRow(
            Line(
                "fork: 20 ways to end a child, whatever is open", group, 10,
                "the child ends, the parent's cluster goes on",
            ),
            "tests/python/cluster/test_forked_children.py",
        ),
        ProgramRow(
            Line(
                "release N-1: workers and coordinators, both ways", group, 1,
                "refused by name",
            ),
            "test_net", "Handshake.AnOlderMinor*:Handshake.AnotherVersion*", "", 1, 1,
        ),
        ProgramRow(
            Line(
                "release N-1: half an upgrade, caches of both releases", group, 1,
                "works or refused by name",
            ),
            "test_cluster", "Versions.*:OldCache.*", "", 1, 1,
        ),
    ]  # fmt: skip


def _programs() -> list[Row]:
    group = "transport and cache, in C++"
    return [
        FuzzRow(
            Line("libFuzzer: frame decoder", group, 100_000_000, "no crash, leak or slow input"),
            # Entropic scheduling counts how rare each feature is: a third of the time of a target
            # that is as quick as this one and finds nothing new any more.
            "fuzz_wire_frame", 100_000, ("-entropic=0",),
        ),
        FuzzRow(
            Line("libFuzzer: message sequences", group, 20_000_000, "no crash, leak or slow input"),
            "fuzz_wire_messages", 100_000,
        ),
        FuzzRow(
            Line("libFuzzer: GGUF files", group, 100_000_000, "no crash, leak or slow input"),
            "fuzz_gguf_open", 100_000,
        ),
        FuzzRow(
            Line("libFuzzer: session files", group, 20_000_000, "no crash, leak or slow input"),
            "fuzz_engine_session_file", 100_000,
        ),
        *(
            FuzzRow(
                Line(
                    f"libFuzzer: {name}", group, 20_000_000,
                    "no crash, leak or slow input",
                ),
                target, 100_000,
            )
            for name, target in (
                ("files understood as models", "fuzz_model_understand"),
                ("slices of the cache", "fuzz_cluster_slice_file"),
                ("journals of pulls", "fuzz_cluster_slice_journal"),
                ("remembered digests", "fuzz_cluster_digest_book"),
            )
        ),
        ProgramRow(
            Line(
                "malformed frames (plain; half as many under TLS)", group, 1_000_000,
                "no crash, RSS drift <= 16 MB, a good client is served",
            ),
            "test_net", "*Malformed*", "MOESAIC_MALFORMED", 1, 20_000,
        ),
        ProgramRow(
            Line(
                "strangers, 20 kinds", group, 10_000,
                "refused within 5 s, no application byte",
            ),
            "test_net", "Strangers.*", "MOESAIC_STRANGERS", 20, 1_000,
        ),
        ProgramRow(
            Line(
                "slow-loris 1,000, slow readers 100, half-open 100", group, 1_200,
                "closed at the deadline, detected within 5 s, the node is named",
            ),
            "test_net", "Crowd.*", "MOESAIC_CROWD", 12, 1_200,
        ),
        ProgramRow(
            Line(
                "cache: damaged, truncated and swapped files", group, 1_000,
                "loads; nothing bad is ever used",
            ),
            "test_cluster", "CacheDamage.DamagedCacheFiles", "MOESAIC_CACHE_FILES", 1, 1_000,
        ),
        ProgramRow(
            Line(
                "cache: ENOSPC, EIO, short write at every write; a kill at every write", group, 1,
                "loads; no half file is left",
            ),
            "test_cluster", "Kinds/FailingDisk.*:PullResume.KilledAtEveryWrite",
            "MOESAIC_ALL", 1, 1,
        ),
    ]  # fmt: skip


def _people() -> list[Row]:
    group = "Ctrl-C and long lives"
    return [
        _case(
            group, 100, "Ctrl-C: decode, prefill, score, load, wait",
            "within 100 ms (load 1 s), object usable", "copies", fault_others.interrupted,
        ),
        _case(
            group, 1_000, "open, load, close", "RSS and descriptors flat",
            "copies", fault_others.opened_and_closed,
        ),
        _case(
            group, 1_440, "history: 8 clients, 3 workers, 2 coordinators, a minute each",
            "every answer is one machine's bytes or a typed error with a fault beside it",
            "three", fault_history.consistent,
        ),
        _case(
            group, 120, "soak: eight clients, a minute each",
            "nothing hung, the same tokens and logits, RSS and descriptors flat",
            "copies", fault_others.soaked,
        ),
    ]  # fmt: skip


def _more() -> list[Row]:
    row = partial(_case, "more than the table asks for", 30)
    return [
        row(
            "kill the coordinator: weights half pulled",
            "workers live, the next load goes on, at most 1.02 of a slice is ever read",
            "pulling", fault_others.coordinator_killed_in_a_pull,
        ),
        row(
            "all workers killed at once, on_loss=wait", _SAME,
            "copies", fault_others.all_killed_at_once,
        ),
        row(
            "SIGSTOP 1 s and 5 s while weights are pulled", "waited for; lost and named",
            "pulling", fault_others.stopped_in_a_load,
        ),
    ]  # fmt: skip


def rows() -> list[Row]:
    """Return all rows in the table's order."""
    return [
        *_programs(),
        *_kills(),
        *_resumes(),
        *_late_losses(),
        *_stops(),
        *_links(),
        *_identity(),
        *_users(),
        *_files(),
        *_ends(),
        *_tests(),
        *_people(),
        *_more(),
    ]
