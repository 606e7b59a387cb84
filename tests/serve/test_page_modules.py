"""The page's modules, in a real Chromium, against our own Python."""

from typing import Any

import numpy as np
import pytest

from tests.serve.chromium import at, chromium
from tml_jax.wire import events, messages, protos
from tml_jax.wire.journal import Journal, journal_event

pytestmark = pytest.mark.browser
RATE = 16_000


async def import_of(page: Any, module: str, body: str, argument: Any = None) -> Any:
    """What a function of a module of the page gives."""
    program = f"async (argument) => {{ const m = await import('/page/{module}'); {body} }}"
    return await page.evaluate(program, argument)


def test_the_codec_reads_and_writes_what_protobuf_does(serving_web, run) -> None:
    config = protos.SessionConfig(instructions="réponds — 你好", sends_audio=True, sample_rate=44_100, seed=2**32 - 1)
    requests = [
        protos.ConverseRequest(config=config),
        protos.ConverseRequest(audio=protos.AudioChunk(pcm=bytes(range(256)) * 20)),
        protos.ConverseRequest(frame=protos.VideoFrame(data=b"\xff\xd8", encoding=1)),
        protos.ConverseRequest(context=protos.ContextInput(text="x", to_say=True)),
        protos.ConverseRequest(close=protos.CloseInput()),
    ]
    responses = [protos.ConverseResponse.FromString(messages.to_message(e).SerializeToString()) for e in told()]

    async def scenario() -> tuple[list[Any], list[Any], str]:
        async with serving_web() as server, chromium() as page:
            await page.goto(at(server))
            written = await import_of(
                page,
                "wire.js",
                """const codec = new m.Codec(await (await fetch('/v1/protocol')).json());
                const plain = (value) => value instanceof Uint8Array ? [...value]
                  : value && typeof value === 'object' ? Object.fromEntries(
                      Object.entries(value).map(([name, one]) => [name, plain(one)])) : value;
                const again = argument.requests.map((bytes) =>
                  [...codec.encode('ConverseRequest', codec.decode('ConverseRequest', Uint8Array.from(bytes)))]);
                const read = argument.responses.map((bytes) =>
                  plain(codec.decode('ConverseResponse', Uint8Array.from(bytes))));
                const unknown = codec.decode('TextInput', Uint8Array.from([0xfa, 1, 1, 65, 10, 2, 104, 105]));
                if (unknown.text !== 'hi') throw new Error('unknown fields are passed over');
                let cut = '';
                try { codec.decode('TextInput', Uint8Array.from([10, 9, 65])); } catch (error) { cut = error.message; }
                return [again, read, cut];""",
                {
                    "requests": [list(one.SerializeToString()) for one in requests],
                    "responses": [list(one.SerializeToString()) for one in responses],
                },
            )
            return written

    again, read, cut = run(scenario())
    assert [protos.ConverseRequest.FromString(bytes(one)) for one in again] == requests
    assert cut == "a message is cut short"
    for found, meant in zip(read, responses, strict=True):
        kind = meant.WhichOneof("payload")
        for field in getattr(meant, kind).DESCRIPTOR.fields:
            value = getattr(getattr(meant, kind), field.name)
            if field.message_type is None and not (
                field.has_presence and not getattr(meant, kind).HasField(field.name)
            ):
                assert found[kind][field.name] == (list(value) if isinstance(value, bytes) else value)


def told() -> list[events.Event]:
    """Something of each kind."""
    rng = np.random.default_rng(0)
    late = np.concatenate([np.zeros(700), 0.2 * rng.standard_normal(2500)]).astype(np.float32)
    return [
        events.Started("abc", events.Stream(200, RATE, 40, 40, 8), 1000, 0.125),
        events.Turn(0, events.Decision.LISTEN, 12.3456789, False, 0, 0.0, 0),
        events.Turn(1, events.Decision.SPEAK, 212.25, True, 40, 0.123456, 3, lost_ms=120),
        events.Words(1, " café", 400, 600),
        events.HeardWords(1, "Grüße, 世界", 200, 400),
        events.Sound(1, 400, 600, late, 0.17),
        events.Turn(2, events.Decision.DELEGATE, 7.0, False, 0, 0.5, 0),
        events.Background(2, 0, "started", "what is six times seven"),
        events.Background(3, 0, "finished", "forty two"),
        events.Background(3, None, "finished", "of the client"),
        events.Background(4, 1, "failed", "no answer within 5 s"),
        events.Ended(5, 1, 10.0, 212.0, 40),
    ]


def test_a_page_keeps_the_journal_that_a_server_keeps(serving_web, run) -> None:
    sent = [messages.to_message(event) for event in told() if not isinstance(event, events.Started)]
    journal = Journal(None, keep=True)
    for message in sent:
        journal_event(journal, messages.to_event(message), 0.2, True)
    journal.write("end", 0.6, 2)

    async def scenario() -> list[Any]:
        async with serving_web() as server, chromium() as page:
            await page.goto(at(server))
            return await import_of(
                page,
                "recording.js",
                """const { Codec } = await import('/page/wire.js');
                const { fromPcm } = await import('/page/sound.js');
                const codec = new Codec(await (await fetch('/v1/protocol')).json());
                const kept = new m.Recording({ sessionId: 'a', seed: 0, period: 0.2, rate: 16000, hasAudio: true });
                for (const bytes of argument) {
                  const message = codec.decode('ConverseResponse', Uint8Array.from(bytes));
                  if (message.audio) message.audio.samples = fromPcm(message.audio.pcm);
                  kept.take(message, codec.enums);
                }
                const text = await kept.jsonl().text();
                const same = JSON.stringify(m.readJournal(text)) === JSON.stringify(kept.lines);
                if (!same) throw new Error("not read back");
                if (m.readJournal(text + '{"t": 1, "tu').length !== kept.lines.length) throw new Error('torn');
                return text.trim().split('\\n').map((line) => JSON.parse(line));""",
                [list(message.SerializeToString()) for message in sent],
            )

    first, *lines = run(scenario())
    assert first["type"] == "session"
    assert lines == journal.events


def test_sound_at_any_rate_becomes_the_wires_however_it_is_cut(serving_web, run) -> None:
    async def scenario() -> dict[str, list[float]]:
        async with serving_web() as server, chromium() as page:
            await page.goto(at(server))
            return await import_of(
                page,
                "resample.js",
                """const found = {};
                for (const [from, to] of [[44100, 16000], [48000, 16000], [96000, 16000], [8000, 16000], [22050, 16000],
                                          [16000, 48000], [16000, 44100], [16000, 16000]]) {
                  const tone = (rate, hertz, count) =>
                    Float32Array.from({ length: count }, (_, i) => Math.sin(2 * Math.PI * hertz * i / rate));
                  let seed = 7;
                  const even = () => 128;
                  const odd = () => 1 + (seed = (seed * 75 + 74) % 65537) % 400;
                  const cut = (samples, size) => {
                    const resampler = new m.Resampler(from, to), out = [];
                    for (let at = 0; at < samples.length;) {
                      const step = size();
                      out.push(...resampler.push(samples.subarray(at, at + step)));
                      at += step;
                    }
                    return out;
                  };
                  const input = tone(from, 1000, from);
                  const [a, b] = [cut(input, even), cut(input, odd)];
                  const meant = tone(to, 1000, a.length);
                  const error = Math.max(...a.slice(200).map((one, i) => Math.abs(one - meant[i + 200])));
                  const both = a.slice(0, Math.min(a.length, b.length));
                  const apart = Math.max(...both.map((one, i) => Math.abs(one - b[i])));
                  const high = from > to ? cut(tone(from, 9500, from), even).slice(400) : [0];
                  const silent = Math.max(...cut(new Float32Array(from), even).map(Math.abs));
                  found[`${from} to ${to}`] = [error, apart, Math.max(...high.map(Math.abs)), to - a.length, silent];
                }
                return found;""",
            )

    for rates, (error, apart, alias, missing, silent) in run(scenario()).items():
        assert error < 2e-3, rates
        assert apart < 1e-6, rates
        assert alias < 1e-3, rates
        assert 0 <= missing < 120, rates
        assert silent == 0, rates


def test_the_jitter_buffer_drops_what_the_user_cut_short(serving_web, run) -> None:
    async def scenario() -> Any:
        async with serving_web() as server, chromium() as page:
            await page.goto(at(server))
            return await import_of(
                page,
                "jitter.js",
                """const TURN = 3200, jitter = new m.JitterBuffer(16000, TURN), out = [];
                const turn = (number, epoch) => {
                  jitter.turn(number);
                  if (epoch) jitter.add(number, new Float32Array(TURN).fill(epoch), epoch);
                };
                const play = (ms) => { for (let i = 0; i < ms; i += 10) out.push(...jitter.pull(160)); };
                turn(0, 1); turn(1, 1); turn(2, 1); // the network had held these up
                play(180); // of which the first 80 are silent
                const until = jitter.cut(1);
                jitter.add(3, new Float32Array(TURN).fill(1), 1); // and this is too late
                const cut = out.length;
                play(1000);
                const faded = out.slice(cut).filter((one) => one).length;
                const again = jitter.cut(1);
                turn(6, 2); play(500);
                return { until, again, faded, heard: out.slice(0, cut).filter((one) => one === 1).length,
                         next: out.filter((one) => one === 2).length };""",
            )

    found = run(scenario())
    assert found.pop("faded") in (159, 160)
    assert found == {"until": 300, "again": None, "heard": 1600, "next": 3200}


def test_the_jitter_buffer_loses_nothing_and_shortens_only_silence(serving_web, run) -> None:
    async def scenario() -> Any:
        async with serving_web() as server, chromium() as page:
            await page.goto(at(server))
            return await import_of(
                page,
                "jitter.js",
                """const RATE = 16000, TURN = 3200;
                // Micro-turns come at the times `arrive` gives, in ms; those in `loud` sound, as k + 1.
                const play = (arrive, loud, total) => {
                  const jitter = new m.JitterBuffer(RATE, TURN);
                  const out = [];
                  let next = 0;
                  for (let ms = 0; ms < total; ms += 10) {
                    for (; next < arrive.length && arrive[next] <= ms; next++) {
                      jitter.turn(next);
                      if (loud.includes(next)) jitter.add(next, new Float32Array(TURN).fill(next + 1));
                    }
                    out.push(...jitter.pull(160));
                  }
                  const heard = {};
                  for (const one of out) if (one) heard[one] = (heard[one] ?? 0) + 1;
                  const gaps = [];
                  for (let i = 1, since = null; i < out.length; i++) {
                    if (out[i - 1] && !out[i]) since = i;
                    if (!out[i - 1] && out[i] && since !== null) gaps.push((i - since) / 16);
                  }
                  return { heard, gaps, underruns: jitter.underruns, aim: jitter.aim / 16, slack: jitter.slackMs,
                           first: out.findIndex((one) => one) / 16 };
                };
                const times = (count, late = {}) =>
                  Array.from({ length: count }, (_, k) => 200 * k + (late[k] ?? 0));
                return {
                  steady: play(times(10), [2, 3, 4], 3000),
                  late: play(times(10, { 4: 150 }), [2, 3, 4, 5], 3000),
                  quiet: play(times(10, { 4: 150 }), [5, 6], 3000),
                  early: play(Array.from({ length: 60 }, (_, k) => 200 * k + (k ? 0 : 400)), [50, 51], 13000),
                };""",
            )

    found = run(scenario())
    steady, late, quiet, early = (found[name] for name in ("steady", "late", "quiet", "early"))
    assert steady == {
        "heard": {"3": 3200, "4": 3200, "5": 3200},
        "gaps": [],
        "underruns": 0,
        "aim": 80,
        "slack": 80,
        "first": 480,
    }, "80 ms after it came"
    assert late["heard"] == {str(k): 3200 for k in (3, 4, 5, 6)}, "nothing is lost"
    assert late["underruns"] == 1
    assert 70 <= sum(late["gaps"]) <= 130
    assert late["aim"] == 120, "it has learnt"
    assert quiet["underruns"] == 0, "nobody hears that silence was longer"
    assert quiet["heard"] == {"6": 3200, "7": 3200}
    assert early["heard"] == {"51": 3200, "52": 3200}
    assert early["slack"] <= 140, "what was too early has been made up for"
