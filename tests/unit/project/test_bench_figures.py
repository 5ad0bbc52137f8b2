"""The arithmetic of the measurements: medians, percentiles, windows, budgets."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from bench.against import interval
from bench.budgets import BUDGETS, Budget, judge
from bench.hook import DOWN, EXIT_0, HANGS, OURS, HookFigures
from bench.loss import IN, OUT, Loss
from bench.procfs import Memory
from bench.report import Results
from bench.service import OPS, ServiceFigures
from bench.stall import RoundTrips, Stall
from bench.stats import median_ratio, percentile, spread
from bench.swaps import TOTAL, Times
from bench.throughput import Throughput


def test_the_median_lies_in_the_middle_of_an_even_number_of_values() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0]).median == 2.5


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (99, 99), (100, 99), (200, 198)])
def test_the_99th_percentile_is_the_value_that_99_of_100_do_not_exceed(
    count: int, expected: int
) -> None:
    assert percentile(range(count, 0, -1), 99) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 99)
    with pytest.raises(ValueError, match="not a percentage"):
        percentile([1.0], 0)


def test_an_interval_leaves_out_no_pair_that_could_be_the_median() -> None:
    assert interval([1.0, 3.0, 2.0, 4.0, 5.0, 6.0]) == (1.0, 6.0)  # 3.1 % miss it
    assert interval([float(number) for number in range(1, 13)]) == (3.0, 10.0)  # 3.9 %, not 14.6 %


def test_a_spread_tells_the_worst() -> None:
    assert spread([1.0, 2.0, 1000.0]).rounded() == {
        "count": 3, "median": 2.0, "p99": 1000.0, "worst": 1000.0,
    }  # fmt: skip


def test_ratios_are_taken_round_by_round() -> None:
    # Of the medians it would be 1: the slow round of the one was not that of the other.
    assert median_ratio([1, 2, 3], [2, 4, 2]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1, 2], [1])
    with pytest.raises(ValueError, match="no rounds"):
        median_ratio([], [])


def test_at_most_includes_the_limit_and_under_does_not() -> None:
    assert Budget("p", "k", "", 5.0, reached=True).met_by(5)
    assert not Budget("p", "k", "", 5.0).met_by(5)
    assert Budget("p", "k", "", 5.0).met_by(-1)


def test_a_figure_that_is_missing_misses_its_budget() -> None:
    verdicts = judge({"switch_ms_median": 1.0})
    assert [verdict.ok for verdict in verdicts] == [True] + [False] * (len(BUDGETS) - 1)
    assert verdicts[1].report()["value"] is None
    assert math.isnan(verdicts[1].value)


def test_the_longest_round_trip_of_a_window_may_have_begun_before_it() -> None:
    trips = RoundTrips([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 0.2, 0.8])
    assert trips.longest(1.5, 2.5) == 0.9
    assert trips.longest(2.0, 2.9) == 0.2
    assert trips.longest(2.0, 3.0) == 0.8
    assert trips.longest(-1.0, 0.5) == 0.1


def test_round_trips_are_read_as_pairs_of_start_and_duration(tmp_path: Path) -> None:
    path = tmp_path / "times"
    path.write_bytes(struct.pack("=4d", 1.0, 0.5, 2.0, 0.25))
    trips = RoundTrips.read(path)
    assert list(trips.starts) == [1.0, 2.0]
    assert list(trips.durations) == [0.5, 0.25]


def results() -> Results:
    throughput = Throughput()
    for key, rates in throughput.rates.items():
        rates.extend([2e9, 2e9] if key[0] == "offload_tap" else [1e9, 1e9])
    return Results(
        times=[Times("bridge_to_bridge", {"switch": [1.0, 2.0], TOTAL: [30.0, 40.0]})],
        losses=[
            Loss("bridge", OUT, swap=[1, 2, 3], quiet=[0, 0, 1]),
            Loss("bridge", IN, swap=[9, 9, 9], quiet=[1, 1, 1]),
            Loss("direct", IN, swap=[200], quiet=[0]),
        ],
        stalls=[
            Stall(first=True, swap=[1.0, 2.0, 7.0], quiet=[0.5, 0.5, 1.0]),
            Stall(first=False, swap=[9.0], quiet=[1.0]),
        ],
        throughput=throughput,
        service=ServiceFigures(
            starts=[1.0, 2.0, 9.0],
            start_cpu=[1.0],
            idle_percent=[0.1, 0.5],
            memory={"idle": Memory(rss=80_000, pss=70_000, anon=60_000, shmem=0)},
            latencies={op: [1.0, 3.0] for op in OPS},
            load=[1.0],
        ),
        hook=HookFigures(
            starts={EXIT_0: [500.0, 900.0, 400.0], OURS: [530.0, 910.0, 600.0]},
            alone={EXIT_0: [1.0], OURS: [12.0], DOWN: [10.0, 11.0], HANGS: [2020.0, 2600.0]},
        ),
    )


def test_what_is_reported_is_the_difference_to_the_windows_without_a_swap() -> None:
    figures = results().hub_swap()
    assert figures["lost_over_baseline_out"] == 2
    assert figures["lost_over_baseline_in"] == 8
    assert figures["lost_over_baseline_median"] == 8  # the worst direction of the bridge network
    assert figures["stall_over_baseline_ms_median"] == 1.5
    assert figures["stall_over_baseline_ms_p99"] == 6.0
    assert figures["stall_over_baseline_shared_cpus_ms_median"] == 8.0
    assert (figures["switch_ms_median"], figures["switch_ms_p99"]) == (1.5, 2.0)
    assert figures["total_ms_median"] == 35.0


def test_every_budget_has_its_figure() -> None:
    assert {budget.key for budget in BUDGETS} <= set(results().figures())
    missed = [verdict.budget.key for verdict in judge(results().figures()) if not verdict.ok]
    assert missed == [
        "lost_over_baseline_in", "stall_over_baseline_ms_median", "stall_over_baseline_ms_p99",
        "idle_cpu_percent", "hook_hangs_s_worst",
    ]  # fmt: skip


def test_the_service_is_judged_by_its_usual_start_and_its_busiest_idle_window() -> None:
    report = results().report()["service"]
    assert (report["start_200_s"], report["start_200_cpu_s"]) == (2.0, 1.0)
    assert report["idle_cpu_percent"] == 0.5
    assert (report["rss_mb"], report["pss_mb"]) == (81.9, 71.7)  # of 10^6 bytes, not 2^20
    assert report["latency_ms"]["plug"] == {"count": 2, "median": 2.0, "p99": 3.0, "worst": 3.0}


def test_the_hook_is_judged_by_its_rounds_and_by_its_worst() -> None:
    report = results().report()["hook"]
    assert report["hook_start_over_ms_median"] == 30.0  # of 30, 10 and 200; of the medians 100
    assert (report["hook_down_ms_worst"], report["hook_hangs_s_worst"]) == (11.0, 2.6)
    assert report["alone_ms"]["linkmgr"]["median"] == 12.0


def test_the_report_has_the_ratios_of_throughput() -> None:
    report = results().report()
    assert report["hub_vs_plain_tap"] == {"tcp_out_ratio": 1.0, "tcp_in_ratio": 1.0}
    assert report["hub_vs_offload_tap"] == {"tcp_out_ratio": 0.5, "tcp_in_ratio": 0.5}
    assert report["throughput_mbit"]["hub"] == {"out": 1000.0, "in": 1000.0}


def test_a_phase_that_was_left_out_has_no_keys() -> None:
    assert Results().report() == {"hub_swap": {}}
