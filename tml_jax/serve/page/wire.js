// Protocol buffers, as much of them as tml.interaction.v1 uses. The tables of fields come from the server, which makes
// them of its .proto file: no second copy of the protocol lies here that could lag behind.

const VARINT = new Set(["uint32", "uint64", "int32", "int64", "bool", "enum"]);
const utf8 = { write: new TextEncoder(), read: new TextDecoder() };

function* varint(number) {
  while (number > 127) {
    yield (number % 128) | 128;
    number = Math.floor(number / 128);
  }
  yield number;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  // Above 2 ** 53 a number loses its last bits; nothing in the protocol comes near.
  varint() {
    let number = 0;
    for (let scale = 1; ; scale *= 128) {
      if (this.at >= this.bytes.length) throw new RangeError("a message is cut short");
      const byte = this.bytes[this.at++];
      number += (byte & 127) * scale;
      if (byte < 128) return number;
    }
  }

  take(length) {
    if (this.at + length > this.bytes.length) throw new RangeError("a message is cut short");
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  skip(wire) {
    if (wire === 0) this.varint();
    else this.take(wire === 1 ? 8 : wire === 5 ? 4 : this.varint());
  }
}

export class Codec {
  constructor({ messages, enums }) {
    this.messages = messages;
    this.enums = enums;
  }

  // Fields that are not given, or have their type's zero, are not written.
  encode(name, values) {
    const parts = [];
    for (const field of this.messages[name]) {
      const value = values[field.name];
      if (value === undefined || (!field.optional && (value === 0 || value === "" || value === false))) continue;
      const [wire, bytes] = this.#write(field, value);
      parts.push(Uint8Array.from(varint(field.number * 8 + wire)));
      if (wire === 2) parts.push(Uint8Array.from(varint(bytes.length)));
      parts.push(bytes);
    }
    const message = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      message.set(part, at);
      at += part.length;
    }
    return message;
  }

  #write(field, value) {
    if (VARINT.has(field.type)) return [0, Uint8Array.from(varint(Number(value)))];
    switch (field.type) {
      case "string":
        return [2, utf8.write.encode(value)];
      case "bytes":
        return [2, value];
      case "message":
        return [2, this.encode(field.of, value)];
      case "double":
        return [1, new Uint8Array(new Float64Array([value]).buffer)];
      case "float":
        return [5, new Uint8Array(new Float32Array([value]).buffer)];
      default:
        throw new TypeError(`fields of type ${field.type} are not known here`);
    }
  }

  // Fields that did not come have their type's zero; optional ones and those of a oneof are left out.
  decode(name, bytes) {
    const fields = this.messages[name];
    const values = {};
    for (const field of fields) if (!field.optional) values[field.name] = zero(field.type);
    const reader = new Reader(bytes);
    while (reader.at < bytes.length) {
      const key = reader.varint();
      const field = fields.find(({ number }) => number === Math.floor(key / 8));
      if (field) values[field.name] = this.#read(field, reader);
      else reader.skip(key % 8);
    }
    return values;
  }

  #read(field, reader) {
    switch (field.type) {
      case "string":
        return utf8.read.decode(reader.take(reader.varint()));
      case "bytes":
        return reader.take(reader.varint());
      case "message":
        return this.decode(field.of, reader.take(reader.varint()));
      case "double":
        reader.take(8);
        return reader.view.getFloat64(reader.at - 8, true);
      case "float":
        reader.take(4);
        return reader.view.getFloat32(reader.at - 4, true);
      case "bool":
        return reader.varint() !== 0;
      default:
        return reader.varint();
    }
  }
}

function zero(type) {
  if (type === "string") return "";
  if (type === "bytes") return new Uint8Array();
  return type === "bool" ? false : 0;
}
