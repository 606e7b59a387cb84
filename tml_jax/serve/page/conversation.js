// One conversation with the server, over a WebSocket that carries the messages of tml.interaction.v1.

import { payload } from "./recording.js";

const PROTOCOL = "tml.interaction.v1";
const MARGIN_MS = 30; // a micro-turn ends this long before the server's tick that takes it
const BUFFERED = 256 * 1024; // bytes that wait to be sent; then pictures are left out
const ACKNOWLEDGE_EVERY = 5; // micro-turns
const MOST_KEPT = 4000; // messages that a server which acknowledges nothing is sent again
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS, PATIENCE_MS] = [200, 4000, 60_000]; // to connect again
// What went wrong, in one sentence for the user; `code` is the server's.
export class Trouble extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

// Asks the server for something; `key` is an API key, or empty.
export async function ask(path, { key = "", method = "GET" } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: key ? { Authorization: `Bearer ${key}` } : {}, cache: "no-store" });
  } catch {
    throw new Trouble("The server cannot be reached. Is it running?", "UNREACHABLE");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Trouble(body.error?.message ?? `The server answered ${answer.status}.`, body.error?.code);
  return body;
}

export class Conversation {
  // `on`: `message(kind, event)` for each message, `lost()` and `back()` around a connection that broke and was made
  // again, `over(trouble)` once at the end, null where it ended well.
  constructor(codec, on) {
    Object.assign(this, { codec, on });
    this.finished = false;
    this.resume = null; // with what the session can be gone on with, once it has begun
    this.sent = { audio: 0, frame: 0, text: 0 }; // what is context counts as text
    this.kept = []; // what was sent, and the server may not have for good
    this.sequence = 0;
  }

  async open(config, key) {
    this.key = key;
    const begun = new Promise((resolve, reject) => Object.assign(this, { started: resolve, refused: reject }));
    begun.catch(() => {}); // told by `over`, too
    await this.#connect("config", { ...config, resumable: true });
    return begun;
  }

  async #connect(kind, first) {
    const { token } = await ask("/v1/tokens", { key: this.key, method: "POST" });
    if (this.hungUp) return;
    const { protocol, host } = window.location;
    const address = `${protocol === "https:" ? "wss" : "ws"}://${host}/v1/stream`;
    const socket = new WebSocket(address, [PROTOCOL, `token.${token}`]);
    socket.binaryType = "arraybuffer";
    Object.assign(this, { socket, ready: false, reason: null });
    socket.onopen = () => this.#write(kind, first);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => this.#closed();
  }

  #receive(data) {
    if (typeof data === "string") {
      const { code, message } = JSON.parse(data);
      this.reason = new Trouble(message, code);
      return;
    }
    const message = this.codec.decode("ConverseResponse", new Uint8Array(data));
    const found = payload(message);
    if (!found) return; // of a newer server
    const [kind, event] = found;
    this.sequence = message.sequence || this.sequence;
    if (kind === "ended") this.ended = true;
    if (event.received) this.#forget(event.received);
    if (kind === "turn" && event.turn % ACKNOWLEDGE_EVERY === 0) this.#write("received", { sequence: this.sequence });
    if (kind === "started") this.#begin(event);
    else if (kind !== "go_away") this.on.message(kind, event);
  }

  #begin(event) {
    const again = this.resume !== null;
    this.resume = { token: event.resume_token, withinMs: event.resume_within_ms };
    this.until = null;
    this.ready = true;
    for (const { kind, value } of this.kept) this.#write(kind, value);
    if (again) this.on.back();
    else this.started({ ...event, startAt: performance.now() + wait(event) });
  }

  // What the server has for good need not be kept.
  #forget({ sound, frames, texts }) {
    const has = { audio: sound, frame: frames, text: texts, context: texts };
    this.kept = this.kept.filter(({ kind, value }) => !(kind in has) || value.offset >= has[kind]);
  }

  #closed() {
    const trouble = this.reason ?? new Trouble("The connection to the server was lost.", "LOST");
    const passes = ["LOST", "UNAVAILABLE", ...(this.until ? ["RESOURCE_EXHAUSTED"] : [])].includes(trouble.code);
    if (this.finished || this.ended || this.hungUp || !this.resume?.token || !passes) return this.#over(trouble);
    if (!this.until) {
      this.until = performance.now() + Math.min(this.resume.withinMs, PATIENCE_MS);
      this.pause = FIRST_PAUSE_MS;
      this.ready = false;
      this.on.lost();
    }
    if (performance.now() > this.until) return this.#over(trouble);
    setTimeout(() => this.#again(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
  }

  async #again() {
    if (this.hungUp) return this.#over(null);
    try {
      await this.#connect("resume", { token: this.resume.token, sequence: this.sequence });
    } catch (error) {
      this.reason = error.code === "UNREACHABLE" ? null : error;
      this.#closed();
    }
  }

  #over(trouble) {
    if (this.finished) return;
    this.finished = true;
    const reason = this.ended || this.hungUp ? null : trouble;
    this.refused(reason ?? new Trouble("The conversation was ended."));
    this.on.over(reason);
  }

  #write(kind, value) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(this.codec.encode("ConverseRequest", { [kind]: value }));
  }

  // Sends something that must arrive, over this connection or the next one.
  #send(kind, value, count = 1) {
    const counted = kind === "context" ? "text" : kind;
    if (counted in this.sent) {
      value = { ...value, offset: this.sent[counted] };
      this.sent[counted] += count;
    }
    this.kept.push({ kind, value });
    if (this.kept.length > MOST_KEPT) this.kept.shift();
    if (this.ready) this.#write(kind, value);
  }

  audio(pcm) {
    this.#send("audio", { pcm: new Uint8Array(pcm.buffer) }, pcm.length);
  }

  // Whether there was room for it.
  frame(jpeg) {
    const room = this.ready && this.socket.bufferedAmount < BUFFERED;
    if (room) this.#send("frame", { data: jpeg, encoding: 1 });
    return room;
  }

  say(text) {
    this.#send("text", { text });
  }

  context(text, toSay) {
    this.#send("context", { text, to_say: toSay });
  }

  // What was heard of speech that the user cut short.
  played(value) {
    this.#write("played", value);
  }

  // The user says no more; the model finishes what it is saying.
  close() {
    this.#send("close", {});
  }

  hangUp() {
    this.hungUp = true;
    this.socket?.close();
    if (this.until) this.#over(null);
  }
}

// Milliseconds from now until the first micro-turn begins, so that it ends just before a tick.
function wait({ next_tick_ms, stream }) {
  const period = stream.micro_turn_ms;
  return (((next_tick_ms - MARGIN_MS) % period) + period) % period;
}
