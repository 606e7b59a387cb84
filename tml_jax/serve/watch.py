"""What a server says of itself to those who run it: Prometheus metrics, and OpenTelemetry spans where they are wanted.

One registry for the process. Nothing here is told of what people say; a span names its session by its id.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric

from tml_jax.serve.config import SessionConfig
from tml_jax.serve.engine import Engine
from tml_jax.wire import events
from tml_jax.wire.journal import onset_ms

REGISTRY = prometheus.CollectorRegistry()
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0)
STEP = prometheus.Histogram(
    "tml_step_seconds",
    "From when a step is due to its results, by live sessions.",
    ["sessions"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
QUEUE = prometheus.Histogram(
    "tml_queue_age_seconds",
    "How long a micro-turn that was complete, and due, waited.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
MISSED = prometheus.Counter("tml_deadline_misses", "Steps longer than a micro-turn.", registry=REGISTRY)
ADMITTED = prometheus.Counter("tml_admitted", "Sessions opened, or gone on with.", ["kind"], registry=REGISTRY)
REFUSED = prometheus.Counter("tml_refused", "Who asked for a session and got none.", ["reason"], registry=REGISTRY)
OVER = prometheus.Counter("tml_sessions_over", "Sessions that are over.", ["reason"], registry=REGISTRY)
DELEGATED = prometheus.Counter("tml_delegations", "Background tasks.", ["state"], registry=REGISTRY)
SILENCE = prometheus.Counter("tml_silence_seconds", "Silence put in for sound that was late.", registry=REGISTRY)
LOST = prometheus.Counter("tml_lost_seconds", "Sound that clients numbered and did not send.", registry=REGISTRY)
FRAMES = prometheus.Counter("tml_frames", "Pictures that came.", registry=REGISTRY)
FRAMES_DROPPED = prometheus.Counter("tml_frames_dropped", "Of these, too many for a micro-turn.", registry=REGISTRY)
SHORTENED = prometheus.Counter("tml_shortened_seconds", "Pauses left out for silence put in.", registry=REGISTRY)
SPOKE = prometheus.Counter("tml_spoke", "Micro-turns in which models decided to speak.", registry=REGISTRY)
SPOKE_SILENT = prometheus.Counter(
    "tml_spoke_silent", "Of these, those that said words of which nothing could be heard.", registry=REGISTRY
)
prometheus.ProcessCollector(registry=REGISTRY)

_tracer: Any = None


class Gauges:
    """What an engine is like at the moment it is asked."""

    def __init__(self, engine: Engine) -> None:
        """Of this engine."""
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """As Prometheus has it."""
        stats = self._engine.stats()
        yield GaugeMetricFamily("tml_slots", "Sessions that fit.", stats.slots)
        yield GaugeMetricFamily("tml_live_sessions", "Sessions that have a slot.", stats.live)
        compiled = stats.compilations_after_warmup
        yield GaugeMetricFamily("tml_compilations_after_warmup", "Programs compiled since the port opened.", compiled)


def scrape(engine: Engine) -> tuple[bytes, str]:
    """All metrics, and the content type that they are written in."""
    own = prometheus.CollectorRegistry()
    own.register(Gauges(engine))  # type: ignore[arg-type]
    text = prometheus.generate_latest(REGISTRY) + prometheus.generate_latest(own)
    return text, prometheus.CONTENT_TYPE_LATEST


def spans_wanted() -> bool:
    """Whether OpenTelemetry's own environment variables name a collector."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def send_spans(exporter: Any = None) -> None:
    """Has spans sent from now on, by OTLP over HTTP as ``OTEL_*`` says, or to another exporter.

    Raises:
      ValueError: OpenTelemetry is not installed.
    """
    global _tracer
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError("OTEL_* asks for spans, which need the extra `telemetry`: install it.") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "tml_jax")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = provider.get_tracer("tml_jax.serve")


def stepped(sessions: int, started_ns: int, seconds: float, missed: bool, ages_s: Sequence[float]) -> None:
    """A step was done for `sessions` live ones; `ages_s` is how long after they were due its micro-turns were."""
    STEP.labels(sessions).observe(seconds)
    MISSED.inc(missed)
    for age_s in ages_s:
        QUEUE.observe(age_s)
    if _tracer is not None:
        attributes = {"tml.sessions": sessions, "tml.micro_turns": len(ages_s), "tml.missed": missed}
        span = _tracer.start_span("step", start_time=started_ns, attributes=attributes)
        span.end(started_ns + round(seconds * 1e9))


def admitted(kind: str) -> None:
    """A session has a client: it is "new", or was "resumed"."""
    ADMITTED.labels(kind).inc()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Where somebody asks for a session: who gets none is counted, by why."""
    try:
        yield
    except Exception as error:
        REFUSED.labels(_reason(error)).inc()
        raise


class SessionWatch:
    """What one session does; its methods do nothing before `begin`."""

    def __init__(self, config: SessionConfig, micro_turn_s: float) -> None:
        """Of a session that has no slot yet."""
        self._wants_audio, self._micro_turn_s = config.wants_audio, micro_turn_s
        self._span: Any = None
        self._tasks: dict[int, Any] = {}

    def begin(self, session_id: str, *, resumed: bool) -> None:
        """It has a slot."""
        if _tracer is not None:
            attributes = {"tml.session": session_id, "tml.resumed": resumed}
            self._span = _tracer.start_span("session", attributes=attributes)

    def told(self, told: Iterable[events.Event]) -> None:
        """A micro-turn's events."""
        told = list(told)
        sounds = [event.samples for event in told if isinstance(event, events.Sound)]
        words = any(isinstance(event, events.Words) for event in told)
        for event in told:
            if isinstance(event, events.Turn):
                SILENCE.inc(event.silence_ms / 1000)
                LOST.inc(event.lost_ms / 1000)
                SHORTENED.inc(event.shortened_ms / 1000)
                FRAMES.inc(event.frames)
                FRAMES_DROPPED.inc(event.frames_dropped)
                if event.decision is events.Decision.SPEAK:
                    SPOKE.inc()
                    heard = any(onset_ms(samples, self._micro_turn_s) is not None for samples in sounds)
                    SPOKE_SILENT.inc(words and self._wants_audio and not heard)
            elif isinstance(event, events.Background):
                DELEGATED.labels(event.state).inc()
                self._task(event)

    def _task(self, event: events.Background) -> None:
        if self._span is None or event.task is None:
            return
        if event.state == "started":
            from opentelemetry import trace

            context = trace.set_span_in_context(self._span)
            attributes = {"tml.task": event.task}
            self._tasks[event.task] = _tracer.start_span("background task", context, attributes=attributes)
        elif span := self._tasks.pop(event.task, None):
            span.set_attribute("tml.state", event.state)
            span.end()

    def over(self, error: BaseException | None) -> None:
        """The session is over."""
        OVER.labels("ended" if error is None else _reason(error)).inc()
        for span in (*self._tasks.values(), self._span):
            if span is not None:
                span.set_attribute("tml.over", "ended" if error is None else _reason(error))
                span.end()
        self._tasks.clear()


def _reason(error: BaseException) -> str:
    """``ServerFullError`` -> ``server_full``."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
