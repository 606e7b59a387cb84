// What runs in the browser's audio thread, at whatever rate the device has: the ears and the loudspeaker.

import { JitterBuffer } from "./jitter.js";
import { Resampler } from "./resample.js";

const BLOCKS_A_SECOND = 50;

// Hears the microphone (input 0) and what the loudspeaker plays (input 1), side by side, in blocks of 20 ms.
class Ears extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.sides = [0, 1].map(() => ({ resampler: new Resampler(sampleRate, rate), block: [] }));
    this.size = rate / BLOCKS_A_SECOND;
    this.alive = true;
    this.port.onmessage = () => (this.alive = false);
  }

  process(inputs) {
    this.sides.forEach(({ resampler, block }, side) => {
      for (const sample of resampler.push(mono(inputs[side]))) block.push(sample);
    });
    while (this.sides[0].block.length >= this.size && this.sides[1].block.length >= this.size) {
      const [heard, played] = this.sides.map(({ block }) => Float32Array.from(block.splice(0, this.size)));
      this.port.postMessage({ heard, played }, [heard.buffer, played.buffer]);
    }
    return this.alive;
  }
}

function mono(channels) {
  if (!channels.length) return new Float32Array(128);
  const mixed = channels[0].slice();
  for (const channel of channels.slice(1)) for (let i = 0; i < mixed.length; i++) mixed[i] += channel[i];
  if (channels.length > 1) for (let i = 0; i < mixed.length; i++) mixed[i] /= channels.length;
  return mixed;
}

class Speaker extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate, microTurn } }) {
    super();
    this.jitter = new JitterBuffer(rate, microTurn);
    this.resampler = new Resampler(rate, sampleRate);
    this.piece = Math.round(rate / 100);
    this.ready = [];
    this.alive = true;
    this.port.onmessage = ({ data }) => {
      if (data.stop) this.alive = false;
      else if (data.samples) this.jitter.add(data.turn, data.samples, data.epoch);
      else if (data.cut) {
        const until_ms = this.jitter.cut(data.cut);
        if (until_ms !== null) this.port.postMessage({ played: { epoch: data.cut, until_ms } });
      }
      else {
        this.jitter.turn(data.turn);
        const { underruns, slackMs } = this.jitter;
        this.port.postMessage({ underruns, slackMs });
      }
    };
  }

  process(_, [[out, ...others]]) {
    while (this.ready.length < out.length)
      for (const sample of this.resampler.push(this.jitter.pull(this.piece))) this.ready.push(sample);
    out.set(this.ready.splice(0, out.length));
    for (const other of others) other.set(out);
    return this.alive;
  }
}

registerProcessor("ears", Ears);
registerProcessor("speaker", Speaker);
