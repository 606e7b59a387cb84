// Plays a recorded conversation on the timeline, with its sound where that is at hand.

import { readJournal } from "./recording.js";
import { clock } from "./timeline.js";

export class Player {
  constructor({ timeline, transcript, button, seek, place }) {
    Object.assign(this, { timeline, transcript, button, seek, place });
    this.audio = new Audio();
    this.place_s = 0;
    this.playing = false;
    button.onclick = () => this.toggle();
    seek.oninput = () => this.go(Number(seek.value));
  }

  // The text of a journal, and its sound as a file, if there is one.
  async load(text, wav) {
    const lines = readJournal(text);
    this.close();
    this.timeline.clear();
    this.transcript.clear();
    for (const line of lines) {
      this.timeline.add(line);
      this.transcript.add(line);
    }
    if (wav) await this.#listen(await wav.arrayBuffer());
    this.open(lines, { soundUrl: wav && URL.createObjectURL(wav) });
  }

  async #listen(bytes) {
    const rate = 16_000;
    let sound;
    try {
      sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
    } catch {
      throw new Error("The sound of this recording cannot be read.");
    }
    const [left, right] = [0, sound.numberOfChannels - 1].map((channel) => sound.getChannelData(channel));
    this.timeline.hear(left, right, rate);
  }

  // Lines that the timeline shows already; `keep`: where it stands is kept, otherwise it is at its beginning.
  open(lines, { soundUrl, keep = false }) {
    this.close();
    this.timeline.live = false;
    this.audio.src = soundUrl ?? "";
    this.silent = !soundUrl;
    this.end = this.timeline.end;
    this.seek.max = this.end;
    if (keep) this.#stand(this.end);
    else {
      this.timeline.left = 0;
      this.go(0);
    }
  }

  close() {
    this.pause();
    if (this.audio.src) URL.revokeObjectURL(this.audio.src);
    this.audio.removeAttribute("src");
    this.timeline.cursor = undefined;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    if (this.place_s >= this.end - 0.05) this.go(0);
    this.playing = true;
    this.button.textContent = "❚❚";
    this.button.setAttribute("aria-label", "Pause");
    if (!this.silent) this.audio.play().catch(() => this.pause());
    let last = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      // A microphone's sound is as long as its session; another clock would run apart from it.
      const sounding = !this.silent && !this.audio.ended;
      this.#show(sounding ? this.audio.currentTime : this.place_s + (now - last) / 1000);
      last = now;
      if (this.place_s >= this.end) this.pause();
      else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    this.audio.pause();
    this.button.textContent = "▶";
    this.button.setAttribute("aria-label", "Play");
  }

  go(seconds) {
    if (!this.silent && this.audio.src) this.audio.currentTime = seconds;
    this.#show(seconds);
  }

  #stand(seconds) {
    this.place_s = Math.min(seconds, this.end);
    this.seek.value = this.place_s;
    this.place.textContent = `${clock(this.place_s)} of ${clock(this.end)}`;
  }

  // Stands there, with what is around it in view.
  #show(seconds) {
    this.#stand(seconds);
    const { from, seconds: span } = this.timeline;
    const ahead = this.place_s - from;
    if (ahead < 0 || ahead > span * 0.85) this.timeline.left = Math.max(0, this.place_s - span * 0.15);
    this.timeline.draw(this.place_s);
  }
}
