// The files of a model: from the network, from the browser's storage, or from the disk. All of them become blobs, of which only
// the requested ranges are read, so that no weight file passes through memory whole.

// An error whose message is meant for the user.
export class Failure extends Error {}

export class Files {
    #blobs = new Map();

    add(path, blob) {
        this.#blobs.set(path, blob);
    }

    size(path) {
        return this.#blobs.get(path)?.size ?? -1;
    }

    // Synchronous, which only workers may do.
    read(path, start, end) {
        const part = this.#blobs.get(path).slice(start, end);
        try {
            return new Uint8Array(new FileReaderSync().readAsArrayBuffer(part));
        } catch (error) {
            throw new Failure(`${path} cannot be read (${error.name}): it was changed or removed`);
        }
    }

    paths() {
        return [...this.#blobs.keys()];
    }
}

// Receives a file in memory.
export class Memory {
    #chunks = [];
    length = 0;
    tag = null;

    reset() {
        this.#chunks = [];
        this.length = 0;
    }

    write(chunk) {
        this.#chunks.push(chunk);
        this.length += chunk.length;
    }

    // Nothing is lost when the program ends before the file does.
    close() {}

    async blob() {
        return new Blob(this.#chunks);
    }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// Downloads what `sink` does not have yet. A server that does not know ranges, or has another version of the file now, sends it from
// its beginning.
export async function download(url, sink, { size, signal, progress }) {
    const headers = {};
    if (sink.length > 0) {
        headers.Range = `bytes=${sink.length}-`;
        if (sink.tag) headers["If-Range"] = sink.tag;
    }
    const cut = () => new Failure(
        `the network was cut at ${megabytes(sink.length)}${size ? ` of ${megabytes(size)}` : ""} of ${url}; what has arrived is kept`,
    );
    let response;
    try {
        response = await fetch(url, { headers, signal });
    } catch (error) {
        throw signal.aborted ? error : cut();
    }
    if (response.status === 416 && sink.length === size) return;
    if (!response.ok) throw new Failure(`${url}: the server answers ${response.status} ${response.statusText}`);
    const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "");
    if (response.status !== 206 || Number(range?.[1]) !== sink.length) sink.reset();
    sink.tag = response.headers.get("ETag");
    const reader = response.body.getReader();
    for (;;) {
        let part;
        try {
            part = await reader.read();
        } catch (error) {
            throw signal.aborted ? error : cut();
        }
        if (part.done) break;
        sink.write(part.value);
        progress(sink.length);
    }
    if (size !== undefined && sink.length < size) throw cut();
    if (size !== undefined && sink.length > size) {
        throw new Failure(`${url} has ${sink.length} bytes; expected ${size}`);
    }
}
