// Converts the weights of a model folder from f32 to f16.

import { cpSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";

// Copies the folder `from` to `to`, with the tensors of its safetensors files in f16.
export function halve(from, to) {
    cpSync(from, to, { recursive: true });
    for (const name of readdirSync(to, { recursive: true })) {
        const file = path.join(to, name);
        if (file.endsWith(".safetensors")) writeFileSync(file, halved(readFileSync(file)));
    }
}

function halved(bytes) {
    const size = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, 8 + size));
    const data = bytes.subarray(8 + size);
    for (const tensor of Object.values(header)) {
        if (tensor.dtype !== "F32") continue;
        [tensor.dtype, tensor.data_offsets] = ["F16", tensor.data_offsets.map((offset) => offset / 2)];
    }
    const values = Buffer.alloc(data.length / 2);
    for (let at = 0; at < data.length; at += 4) values.writeUInt16LE(half(data.readUInt32LE(at)), at / 2);
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    return Buffer.concat([length, text, values]);
}

// The bits of a value in f16, rounded towards zero; below its normal numbers, and above them, zero and the largest one.
function half(bits) {
    const [sign, exponent, fraction] = [(bits >>> 16) & 0x8000, ((bits >>> 23) & 0xff) - 112, (bits >>> 13) & 0x3ff];
    if (exponent <= 0) return sign;
    return exponent > 30 ? sign | 0x7bff : sign | (exponent << 10) | fraction;
}
