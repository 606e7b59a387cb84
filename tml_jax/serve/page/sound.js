// The page's microphone, loudspeaker and recorder: one graph, so that the recording holds what was really heard.

export class Sound {
  // Asks for the microphone, if it is wanted; where it may not be had, throws what the browser throws.
  static async open({ microphone, rate, microTurn, onBlock, onState }) {
    const stream = microphone
      ? await navigator.mediaDevices.getUserMedia({
          audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
        })
      : null;
    const context = new AudioContext({ latencyHint: "interactive" });
    try {
      await context.audioWorklet.addModule(new URL("worklets.js", import.meta.url));
      await context.resume();
    } catch (error) {
      stream?.getTracks().forEach((track) => track.stop());
      await context.close();
      throw error;
    }
    return new Sound(context, stream, { rate, microTurn, onBlock, onState });
  }

  constructor(context, stream, { rate, microTurn, onBlock, onState }) {
    this.context = context;
    this.stream = stream;
    this.muted = false;
    this.ears = new AudioWorkletNode(context, "ears", {
      numberOfInputs: 2,
      numberOfOutputs: 1, // of silence: a node that leads nowhere is not run
      processorOptions: { rate },
    });
    this.speaker = new AudioWorkletNode(context, "speaker", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { rate, microTurn },
    });
    if (stream) context.createMediaStreamSource(stream).connect(this.ears, 0, 0);
    this.speaker.connect(this.ears, 0, 1);
    this.speaker.connect(context.destination);
    this.ears.connect(context.destination);
    this.ears.port.onmessage = ({ data: { heard, played } }) => {
      if (this.muted) heard.fill(0);
      onBlock(heard, played);
    };
    this.speaker.port.onmessage = ({ data }) => onState(data);
  }

  get rate() {
    return this.context.sampleRate;
  }

  turn(turn) {
    this.speaker.port.postMessage({ turn });
  }

  play(turn, samples, epoch) {
    this.speaker.port.postMessage({ turn, samples, epoch }, [samples.buffer]);
  }

  // What was said up to this epoch was cut short by the user.
  cut(epoch) {
    this.speaker.port.postMessage({ cut: epoch });
  }

  // The microphone goes; what is being said is still played.
  deafen() {
    this.stream?.getTracks().forEach((track) => track.stop());
  }

  async close() {
    this.deafen();
    this.ears.port.postMessage({ stop: true });
    this.speaker.port.postMessage({ stop: true });
    if (this.context.state !== "closed") await this.context.close();
  }
}

export function toPcm(samples) {
  return Int16Array.from(samples, (sample) => Math.max(-32768, Math.min(32767, Math.round(sample * 32767))));
}

export function fromPcm(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Float32Array.from({ length: bytes.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32767);
}
