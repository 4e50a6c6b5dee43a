// Limits the memory of a WebAssembly module.

const PAGE = 65_536;

// Returns a copy of a module whose memory cannot grow by more than `bytes`.
export function limited(module, bytes) {
    for (let at = 8; at < module.length; ) {
        const id = module[at];
        const [size, start] = read(module, at + 1);
        // The section of memories: their number, which is one, and its limits.
        if (id === 5) {
            const [minimum] = read(module, start + 2);
            const limits = Buffer.concat([Buffer.from([1, 1]), written(minimum), written(minimum + Math.floor(bytes / PAGE))]);
            return Buffer.concat([module.subarray(0, at + 1), written(limits.length), limits, module.subarray(start + size)]);
        }
        at = start + size;
    }
    throw new Error("the module has no memory");
}

// An unsigned LEB128 number, and the position after it.
function read(bytes, at) {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
        const byte = bytes[at++];
        value += (byte & 0x7f) * 2 ** shift;
        if (byte < 0x80) return [value, at];
    }
}

function written(value) {
    const bytes = [];
    do {
        bytes.push((value % 128) + (value >= 128 ? 128 : 0));
        value = Math.floor(value / 128);
    } while (value > 0);
    return Buffer.from(bytes);
}
