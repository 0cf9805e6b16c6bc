"""The OpenTelemetry SDK with in-memory exporters, one of each per test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dispatch import MemoryStorage, StorageError
from dispatch.observe.otel import OpenTelemetryObserver


class Away(MemoryStorage):
    """It cannot be looked at while `away`: it fails, or with `hangs` does not answer."""

    away = hangs = False

    async def count(self, *args: Any, **kwargs: Any) -> Any:
        if self.away and self.hangs:
            await trio.sleep_forever()
        if self.away:
            raise StorageError("away")
        return await super().count(*args, **kwargs)


@attrs.define
class Telemetry:
    """What was exported, and observers that export to it."""

    tracers: TracerProvider
    meters: MeterProvider
    _spans: InMemorySpanExporter
    _metrics: InMemoryMetricReader

    def observer(self, **options: Any) -> OpenTelemetryObserver:
        return OpenTelemetryObserver(
            tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """The spans that have ended, in that order; those of one name."""
        return [each for each in self._spans.get_finished_spans() if name in (None, each.name)]

    def points(self, name: str) -> list[Any]:
        """The data points of one metric, as they stand now."""
        found = self._metrics.get_metrics_data()
        if found is None:
            return []
        return [
            point
            for resource in found.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def names(self) -> dict[str, str]:
        """Every metric exported, and its unit."""
        found = self._metrics.get_metrics_data()
        assert found is not None
        return {
            metric.name: metric.unit
            for resource in found.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    spans = InMemorySpanExporter()
    metrics = InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([metrics], shutdown_on_exit=False)
    yield Telemetry(tracers, meters, spans, metrics)
    tracers.shutdown()
    meters.shutdown()
