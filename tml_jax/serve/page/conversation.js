// One conversation with the server, over a WebSocket that carries the messages of tml.interaction.v1.

import { payload } from "./recording.js";

const PROTOCOL = "tml.interaction.v1";
const MARGIN_MS = 30; // a micro-turn ends this long before the server's tick that takes it
const BUFFERED = 256 * 1024; // bytes that wait to be sent; then pictures are left out

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
  // `on`: `message(kind, event)` for each message, `over(trouble)` once at the end, null where it ended well.
  constructor(codec, on) {
    Object.assign(this, { codec, on });
    this.skipped = 0;
    this.finished = false;
  }

  async open(config, key) {
    const { token } = await ask("/v1/tokens", { key, method: "POST" });
    const { protocol, host } = window.location;
    const socket = new WebSocket(`${protocol === "https:" ? "wss" : "ws"}://${host}/v1/stream`, [
      PROTOCOL,
      `token.${token}`,
    ]);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.#send("config", config);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code }) => this.#over(this.reason ?? lost(code));
    return new Promise((resolve, reject) => {
      this.started = resolve;
      this.refused = reject;
    });
  }

  #receive(data) {
    if (typeof data === "string") {
      const { code, message } = JSON.parse(data);
      this.reason = new Trouble(message, code);
      return;
    }
    const found = payload(this.codec.decode("ConverseResponse", new Uint8Array(data)));
    if (!found) return; // of a newer server
    const [kind, event] = found;
    if (kind === "ended") this.ended = true;
    if (kind === "started") this.started({ ...event, startAt: performance.now() + wait(event) });
    this.on.message(kind, event);
  }

  #over(trouble) {
    if (this.finished) return;
    this.finished = true;
    const reason = this.ended || this.hungUp ? null : trouble;
    this.refused(reason ?? new Trouble("The conversation was ended."));
    this.on.over(reason);
  }

  #send(kind, value) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(this.codec.encode("ConverseRequest", { [kind]: value }));
  }

  audio(pcm) {
    this.#send("audio", { pcm: new Uint8Array(pcm.buffer) });
  }

  // Whether there was room for it.
  frame(jpeg) {
    const room = this.socket?.bufferedAmount < BUFFERED;
    if (room) this.#send("frame", { data: jpeg, encoding: 1 });
    else this.skipped++;
    return room;
  }

  say(text) {
    this.#send("text", { text });
  }

  context(text, toSay) {
    this.#send("context", { text, to_say: toSay });
  }

  // The user says no more; the model finishes what it is saying.
  close() {
    this.#send("close", {});
  }

  hangUp() {
    this.hungUp = true;
    this.socket?.close();
  }
}

// Milliseconds from now until the first micro-turn begins, so that it ends just before a tick.
function wait({ next_tick_ms, stream }) {
  const period = stream.micro_turn_ms;
  return (((next_tick_ms - MARGIN_MS) % period) + period) % period;
}

function lost(code) {
  return new Trouble(
    code === 1012 ? "The server has gone down." : "The connection to the server was lost.",
    code === 1012 ? "UNAVAILABLE" : "LOST",
  );
}
