"""The failure of a candidate affects only its own rows, and no measured row is lost."""

import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.pooling_candidate import can_run, cannot_run, open_pooling, read_from_disk

from dinov2rt.benchmarks.harness.measure import Measured, Request, measure_bundle
from dinov2rt.benchmarks.harness.worker import Worker
from dinov2rt.benchmarks.peers.candidate import Candidate
from dinov2rt.benchmarks.results import PeakRates, Row
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision


def candidate(name: str, way_to_fail: str = "", *, is_peer: bool = True) -> Candidate:
    return Candidate(
        name=name,
        title=name,
        precision=Precision.FP32,
        is_peer=is_peer,
        cannot_run=cannot_run if way_to_fail == "missing" else can_run,
        open=partial(open_pooling, way_to_fail=way_to_fail),
    )


def measured(
    bundle: Path, reference: str, *candidates: Candidate, min_turns: int = 1, processes: int = 1
) -> list[Measured]:
    request = Request(
        own=tuple(each for each in candidates if not each.is_peer) or (candidate("own"),),
        peers=tuple(each for each in candidates if each.is_peer),
        reference=candidate("reference", reference),
        batches=(1, 2),
        sizes=(ImageSize(28, 28),),
        device="cpu",
        threads=1,
        seconds=0.001,
        min_turns=min_turns,
        processes=processes,
    )
    return list(measure_bundle(bundle, request, PeakRates({}, {}, 10.0), lambda _: None))


def rows(so_far: Measured, name: str) -> list[Row]:
    return [row for row in so_far.rows if row.candidate == name]


def test_results_are_yielded_after_every_cell(bundle_s_reg: Path) -> None:
    first, whole = measured(bundle_s_reg, "", candidate("peer"))
    assert [len(rows(each, "peer")) for each in (first, whole)] == [1, 2]
    assert whole.rows[: len(first.rows)] == first.rows
    assert all(row.latency is not None for row in whole.rows)
    assert {facts.candidate for facts in first.candidates} == {"own", "peer"}


def test_every_candidate_has_as_many_processes_in_each_cell(
    bundle_s_reg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted, restart = [], Worker.restart

    def count(worker: Worker, pixels: np.ndarray) -> None:
        restarted.append((worker.candidate.name, len(pixels)))
        restart(worker, pixels)

    monkeypatch.setattr(Worker, "restart", count)
    *_, whole = measured(bundle_s_reg, "", candidate("peer"), min_turns=5, processes=3)
    assert sorted(restarted) == sorted(2 * [(n, b) for n in ("own", "peer") for b in (1, 2)])
    assert all(row.latency is not None and len(row.latency.turns_ms) >= 5 for row in whole.rows)


def test_a_candidate_that_dies_has_a_reason_and_the_others_continue(bundle_s_reg: Path) -> None:
    *_, whole = measured(bundle_s_reg, "", candidate("dying", "dies"), candidate("peer"))
    timed, dead = rows(whole, "dying")
    assert timed.latency is not None
    assert dead.failure == "dying: its process was killed, as happens where memory runs out"
    assert all(row.latency is not None for row in rows(whole, "peer"))
    facts = {each.candidate: each for each in whole.candidates}
    assert facts["dying"].peak_rss_mib is None
    assert facts["peer"].peak_rss_mib is not None


def test_a_cell_without_a_reference_has_no_times_and_earlier_cells_stay(bundle_s_reg: Path) -> None:
    *_, whole = measured(bundle_s_reg, "dies", candidate("peer"))
    before, after = rows(whole, "peer")
    assert before.latency is not None
    assert (after.latency, after.accuracy) == (None, None)
    assert after.failure is not None
    assert after.failure.startswith("the reference failed: reference: its process")


def test_a_candidate_that_is_not_accurate_is_not_timed(bundle_s_reg: Path) -> None:
    *_, whole = measured(bundle_s_reg, "", candidate("wrong", "wrong"))
    for row in rows(whole, "wrong"):
        assert row.latency is None
        assert row.failure is not None
        assert row.failure.startswith("not accurate: relative L2 5.00e-01")


def test_a_candidate_that_cannot_run_or_load_is_missing(bundle_s_reg: Path) -> None:
    *_, whole = measured(
        bundle_s_reg,
        "",
        candidate("absent", "missing", is_peer=False),
        candidate("broken", "load", is_peer=False),
        candidate("peer", "load"),
    )
    assert {(each.candidate, each.reason, each.failed) for each in whole.missing} == {
        ("absent", "its package is not installed", False),
        ("broken", "broken: there is no such library", True),
        ("peer", "peer: there is no such library", False),
    }
    assert whole.rows == ()


def test_reads_from_disk_during_calls_are_counted(bundle_s_reg: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    read_from_disk()
    if resource.getrusage(resource.RUSAGE_SELF).ru_majflt == before:
        pytest.skip("this file system has no disk")
    *_, whole = measured(bundle_s_reg, "", candidate("short of memory", "thrashes"))
    counted, undisturbed = (
        [row.latency.disk_reads_per_s for row in rows(whole, name) if row.latency]
        for name in ("short of memory", "own")
    )
    assert len(counted) == 2
    assert all(each > 20 for each in counted)
    assert max(undisturbed) < min(counted)
