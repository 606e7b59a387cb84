// The conversation in words, one line for each stretch of one speaker: what a screen reader reads.

import { clock } from "./timeline.js";

const PAUSE_S = 2; // a longer one begins a new line
const WHO = { you: "You", model: "Model", typed: "You typed", background: "Background", told: "Instructions" };
const STATES = { started: "asked: ", progress: "at work: ", failed: "failed: ", finished: "" };

export class Transcript {
  constructor(list) {
    this.list = list;
    this.clear();
  }

  clear() {
    this.list.replaceChildren();
    this.open = {};
  }

  // A line of a journal; what says nothing is passed over.
  add({ type, t, text, state }) {
    if (type === "heard") this.#piece("you", t, text);
    else if (type === "word") this.#piece("model", t, text);
    else if (type === "text") this.#line("typed", t, text);
    else if (type === "instructions") this.#line("told", t, text);
    else if (type === "background") this.#line("background", t, STATES[state] + text);
  }

  #piece(who, t, text) {
    const open = this.open[who];
    if (open && t - open.until < PAUSE_S && open.newest === this.list.lastElementChild) {
      open.text.data += text;
      open.until = t;
      return this.#scroll();
    }
    if (!text.trim()) return;
    this.open[who] = { until: t, ...this.#line(who, t, text.trimStart()) };
  }

  #line(who, t, words) {
    const line = document.createElement("li");
    line.dataset.who = who === "typed" || who === "told" ? "you" : who;
    const [time, name, said] = ["time", "b", "span"].map((kind) => document.createElement(kind));
    time.textContent = clock(t);
    name.textContent = WHO[who];
    const text = document.createTextNode(words);
    said.append(text);
    line.append(time, name, said);
    this.list.append(line);
    this.#scroll();
    return { text, newest: line };
  }

  #scroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    if (scrollHeight - scrollTop - clientHeight < 80) this.list.scrollTop = scrollHeight;
  }
}
