// What was heard and what happened, kept in the browser: a stereo wav (left the user, right the model as it was played)
// and a journal, JSON lines as the server's own journals have them.

import { toPcm } from "./sound.js";

const AUDIBLE_DB = -40;
const DECISIONS = { DECISION_LISTEN: "listen", DECISION_SPEAK: "speak", DECISION_DELEGATE: "delegate" };
const STATES = {
  BACKGROUND_STATE_STARTED: "started",
  BACKGROUND_STATE_FINISHED: "finished",
  BACKGROUND_STATE_FAILED: "failed",
  BACKGROUND_STATE_PROGRESS: "progress",
};
const KEPT_IN_BLOBS = 3000; // blocks; what is in a blob need not be in memory

export class Recording {
  constructor({ sessionId, seed, period, rate, hasAudio }) {
    Object.assign(this, { sessionId, period, rate, hasAudio });
    this.blocks = [];
    this.blobs = [];
    this.samples = 0;
    this.lines = [];
    this.turn = -1;
    const started = { session: sessionId, seed, micro_turn_s: period, started_unix_s: Date.now() / 1000 };
    this.write("session", 0, 0, started);
  }

  // One block of both sides, equally long.
  hear(heard, played) {
    const both = new Float32Array(2 * heard.length);
    for (let i = 0; i < heard.length; i++) {
      both[2 * i] = heard[i];
      both[2 * i + 1] = played[i];
    }
    this.blocks.push(toPcm(both));
    this.samples += heard.length;
    if (this.blocks.length >= KEPT_IN_BLOBS) this.blobs.push(new Blob(this.blocks.splice(0)));
  }

  write(type, t, turn, fields = {}) {
    const line = { t: round(t, 4), turn, type, ...fields };
    this.lines.push(line);
    return line;
  }

  // What the user typed, or what the model was told in other ways.
  tell(type, text) {
    return this.write(type, (this.turn + 1) * this.period, this.turn + 1, { text });
  }

  fail(text) {
    return this.write("error", (this.turn + 1) * this.period, Math.max(0, this.turn), { text });
  }

  // A message of the server as journal lines.
  take(message, enums) {
    const first = this.lines.length;
    const [kind, event] = payload(message);
    const turn = event.turn ?? Math.max(0, this.turn);
    const [starts, heardAt] = [turn * this.period, (turn + 1) * this.period];
    switch (kind) {
      case "turn":
        this.turn = turn;
        if (this.hasAudio) this.write("sound", starts, turn, { level: round(event.input_level, 5) });
        if (event.frames) this.write("frame", starts, turn, { count: event.frames });
        if (event.frames_dropped) this.write("frames_dropped", starts, turn, { count: event.frames_dropped });
        if (event.silence_ms) this.write("silence", starts, turn, { ms: event.silence_ms });
        if (event.lost_ms) this.write("lost", starts, turn, { ms: event.lost_ms });
        if (event.shortened_ms) this.write("shortened", starts, turn, { ms: event.shortened_ms });
        this.write(DECISIONS[enums.Decision[event.decision]], heardAt, turn);
        this.write("step", heardAt, turn, {
          ms: round(event.step_ms, 3),
          missed: event.deadline_missed,
          queued_ms: round(event.queued_ms, 3),
        });
        break;
      case "heard":
        this.write("heard", heardAt, turn, { text: event.text });
        break;
      case "text":
        this.write("word", heardAt, turn, { text: event.text });
        break;
      case "audio": {
        const onset = onsetMs(event.samples, this.period);
        const fields = { level: round(event.level, 5) };
        this.write("voice", heardAt, turn, onset === null ? fields : { ...fields, onset_ms: onset });
        break;
      }
      case "background": {
        const state = STATES[enums.BackgroundState[event.state]];
        this.write("background", heardAt, turn, { task: event.task ?? null, state, text: event.text });
        break;
      }
      case "ended":
        this.write("end", (this.turn + 1) * this.period, Math.max(0, this.turn));
        break;
    }
    return this.lines.slice(first);
  }

  jsonl() {
    return new Blob(this.lines.map((line) => JSON.stringify(line) + "\n"), { type: "application/jsonl" });
  }

  wav() {
    const header = new DataView(new ArrayBuffer(44));
    const bytes = 4 * this.samples;
    const fields = [
      [0, "RIFF"], [4, 36 + bytes, 4], [8, "WAVEfmt "], [16, 16, 4], [20, 1, 2], [22, 2, 2], [24, this.rate, 4],
      [28, 4 * this.rate, 4], [32, 4, 2], [34, 16, 2], [36, "data"], [40, bytes, 4],
    ];
    for (const [at, value, size] of fields) {
      if (size === 4) header.setUint32(at, value, true);
      else if (size === 2) header.setUint16(at, value, true);
      else for (let i = 0; i < value.length; i++) header.setUint8(at + i, value.charCodeAt(i));
    }
    return new Blob([header, ...this.blobs, ...this.blocks], { type: "audio/wav" });
  }
}

// What a message carries, among what else stands in it: its name and itself.
export function payload(message) {
  return Object.entries(message).find(([, value]) => typeof value === "object");
}

// How far into a micro-turn its sound begins to be heard; null where nothing of it can be.
export function onsetMs(samples, period) {
  const blocks = Math.round(period * 100);
  const size = Math.floor(samples.length / blocks);
  for (let block = 0; block < blocks; block++) {
    let power = 0;
    for (let i = block * size; i < (block + 1) * size; i++) power += samples[i] ** 2;
    if ((power * blocks) / Math.max(1, samples.length) > 10 ** (AUDIBLE_DB / 10)) return block * 10;
  }
  return null;
}

// The lines of a journal. A last line that a crash cut off is left out.
export function readJournal(text) {
  const lines = text.split("\n");
  const torn = lines.pop();
  const read = lines.map((line, index) => {
    try {
      const event = JSON.parse(line);
      if (typeof event.t !== "number" || typeof event.turn !== "number" || typeof event.type !== "string") throw 0;
      return event;
    } catch {
      throw new Error(`This file is no session journal: line ${index + 1} is no event.`);
    }
  });
  try {
    if (torn) read.push(JSON.parse(torn));
  } catch {
    // cut off when the process died
  }
  if (!read.length) throw new Error("This file is no session journal: it is empty.");
  return read;
}

function round(number, digits) {
  return Number(number.toFixed(digits));
}
