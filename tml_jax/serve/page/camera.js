// The camera: a few small pictures a second, as JPEG.

const SIDE = 240; // pixels of the longer side that is sent: the model sees fewer still
const THUMB = 64;

export class Camera {
  static async open(element) {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" },
    });
    element.srcObject = stream;
    await element.play();
    return new Camera(element, stream);
  }

  constructor(element, stream) {
    this.element = element;
    this.stream = stream;
    this.canvas = document.createElement("canvas");
    this.taking = false;
  }

  // A JPEG and a thumbnail, or null where the last picture is still being made.
  async take() {
    const { videoWidth: width, videoHeight: height } = this.element;
    if (this.taking || !width) return null;
    this.taking = true;
    try {
      const scale = SIDE / Math.max(width, height);
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.getContext("2d").drawImage(this.element, 0, 0, this.canvas.width, this.canvas.height);
      const blob = await new Promise((resolve) => this.canvas.toBlob(resolve, "image/jpeg", 0.8));
      if (!blob) return null;
      const thumb = await createImageBitmap(this.canvas, { resizeHeight: THUMB, resizeQuality: "medium" });
      return { jpeg: new Uint8Array(await blob.arrayBuffer()), thumb };
    } finally {
      this.taking = false;
    }
  }

  close() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.element.srcObject = null;
  }
}
