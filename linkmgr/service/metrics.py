"""Figures for Prometheus, from a registry of our own."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from linkmgr.api import LinkApi
from linkmgr.events import Event
from linkmgr.model import Finding, Nic, NicState, VmInfo, VmState
from linkmgr.service.operations import Operation

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SCRAPE_TIMEOUT_S = 2.0  # seconds that a scrape waits for QEMUs; then it gets the figures before
_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@runtime_checkable
class SnapshotSource(Protocol):
    """A `LinkApi` that can also tell what it knows without asking any QEMU."""

    def snapshot(self) -> tuple[list[VmInfo], list[Nic]]:
        """All VMs and NICs, as last known."""


class _WithoutCreated:
    """A registry without the time at which each counter and histogram began to count.

    Nothing asks for it, it doubles the series, and prometheus_client can leave it out only for
    the whole process, which may be another's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """Collect all families."""
        for family in self._registry.collect():
            family.samples = [each for each in family.samples if not _is_created(family, each)]
            yield family


class Metrics:
    """All figures of one service, or of one look at a service."""

    def __init__(self, *, process: bool = True) -> None:
        self._registry = registry = CollectorRegistry()
        if process:
            # node_exporter, whose textfile collector may read this, has process_* of its own.
            ProcessCollector(namespace="linkmgr", registry=registry)
        self._nics = Gauge("linkmgr_nics", "NICs by state", ["state"], registry=registry)
        self._vms = Gauge("linkmgr_vms", "VMs by state", ["state"], registry=registry)
        self._networks = Gauge("linkmgr_networks", "Networks", registry=registry)
        self._connections = Gauge(
            "linkmgr_connections", "Plugged NICs by network", ["network"], registry=registry
        )
        self._findings = Gauge(
            "linkmgr_findings", "What the last check found", ["code"], registry=registry
        )
        self._checked = Gauge(
            "linkmgr_last_check_timestamp_seconds", "When that was", registry=None
        )
        self._verbs = Counter(
            "linkmgr_verbs", "Changes by verb and code", ["verb", "code"], registry=registry
        )
        self._verb_seconds = Histogram(
            "linkmgr_verb_seconds", "How long changes took", ["verb"], registry=registry
        )
        self._step_seconds = Histogram(
            "linkmgr_step_seconds", "How long the steps of a swap took", ["step"],
            buckets=_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._events = Counter("linkmgr_events", "Events by kind", ["kind"], registry=registry)
        build = Gauge("linkmgr_build_info", "The version", ["version"], registry=registry)
        build.labels(version()).set(1)
        self._is_checked = False
        self._asking: asyncio.Task[None] | None = None

    def on_operation(self, operation: Operation) -> None:
        """Count a change that has ended."""
        self._verbs.labels(operation.verb.value, operation.code).inc()
        self._verb_seconds.labels(operation.verb.value).observe((operation.ms or 0) / 1000)
        timings = (operation.result or {}).get("timings") or {}
        for step, ms in timings.items():
            self._step_seconds.labels(step).observe(ms / 1000)

    def on_event(self, event: Event) -> None:
        """Count an event."""
        self._events.labels(event.kind.value).inc()

    def on_check(self, findings: Sequence[Finding]) -> None:
        """Take in what a check found."""
        self._findings.clear()
        for code, count in Tally(finding.code for finding in findings).items():
            self._findings.labels(code).set(count)
        if not self._is_checked:  # until then there is no such figure: 0 would be 1970
            self._registry.register(self._checked)
            self._is_checked = True
        self._checked.set_to_current_time()

    async def text(self, api: LinkApi) -> str:
        """Return all figures in Prometheus's text form.

        What is counted now is had without asking any QEMU where that can be; else a QEMU that does
        not answer delays a scrape by no more than two seconds, which then has the figures before.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(api), name="metrics")
            self._asking.add_done_callback(_consume_error)
        await asyncio.wait({self._asking}, timeout=_SCRAPE_TIMEOUT_S)
        if self._asking.done():
            self._asking.result()
        return generate_latest(_WithoutCreated(self._registry)).decode()

    async def close(self) -> None:
        """Wait for a look that is still under way."""
        if self._asking is not None:
            await asyncio.wait({self._asking})

    async def _ask(self, api: LinkApi) -> None:
        if isinstance(api, SnapshotSource):
            vms, nics = api.snapshot()
        else:
            vms, nics = await api.vms(), await api.nics()
        networks = await api.networks()
        of_vms, of_nics = Tally(vm.state for vm in vms), Tally(nic.state for nic in nics)
        for vm_state in VmState:
            self._vms.labels(vm_state.value).set(of_vms[vm_state])
        for nic_state in NicState:
            self._nics.labels(nic_state.value).set(of_nics[nic_state])
        self._networks.set(len(networks))
        self._connections.clear()
        plugged = Tally(nic.connection.network for nic in nics if nic.connection)
        for network in {str(each) for each in networks} | set(plugged):
            self._connections.labels(network).set(plugged[network])


async def metrics_text(api: LinkApi) -> str:
    """Return what can be counted through the verbs, for the textfile collector of node_exporter.

    :raise LinkmgrError: when the verbs fail.
    """
    metrics = Metrics(process=False)
    try:
        metrics.on_check(await api.check())
        return await metrics.text(api)
    finally:
        await metrics.close()


def _is_created(family: Family, sample: Sample) -> bool:
    return sample.name == f"{family.name}_created"


def _consume_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # the scrape that began it may have given up


@lru_cache(1)
def version() -> str:
    """The installed version of linkmgr."""
    try:
        return installed("linkmgr")
    except PackageNotFoundError:
        return "unknown"
