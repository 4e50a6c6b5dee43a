// One model in the browser's storage (the origin-private file system). An index says which files are complete; the others are
// resumed.

import { Failure } from "./files.js";

const FOLDER = "swiftbrush-model";
const INDEX = "index.json";

const megabytes = (bytes) => `${Math.round(bytes / 1e6)} MB`;

async function full() {
    const { quota = 0, usage = 0 } = await navigator.storage.estimate();
    return new Failure(
        `the browser's storage is full: it keeps ${megabytes(usage)} of at most ${megabytes(quota)} for this page. Remove the kept model, or free space on the disk`,
    );
}

// Receives a file in storage.
class Stored {
    #handle;

    constructor(handle, tag) {
        this.#handle = handle;
        this.length = handle.getSize();
        this.tag = tag;
    }

    reset() {
        this.#handle.truncate(0);
        this.length = 0;
    }

    write(chunk) {
        const written = this.#handle.write(chunk, { at: this.length });
        // Chromium returns the code of the error, a negative number without its sign, instead of throwing.
        if (written > chunk.length) throw new DOMException("", "QuotaExceededError");
        this.length += written;
        if (written < chunk.length) throw new DOMException("", "QuotaExceededError");
    }

    close() {
        this.#handle.flush();
        this.#handle.close();
    }
}

export class Storage {
    #folder;
    index;

    static async open() {
        const storage = new Storage();
        try {
            const root = await navigator.storage.getDirectory();
            storage.#folder = await root.getDirectoryHandle(FOLDER, { create: true });
        } catch (error) {
            throw new Failure(`the browser keeps no files for this page (${error.name}); private windows often do not`);
        }
        storage.index = await storage.#read();
        return storage;
    }

    async #read() {
        try {
            const file = await (await this.#folder.getFileHandle(INDEX)).getFile();
            return JSON.parse(await file.text());
        } catch {
            return { base: null, files: {} };
        }
    }

    async #write() {
        const handle = await this.#folder.getFileHandle(INDEX, { create: true });
        const access = await handle.createSyncAccessHandle();
        try {
            access.truncate(0);
            access.write(new TextEncoder().encode(JSON.stringify(this.index)), { at: 0 });
            access.flush();
        } finally {
            access.close();
        }
    }

    // Forgets a model of another address.
    async choose(base) {
        if (this.index.base !== base) {
            await this.remove();
            this.index = { base, files: {} };
            await this.#write();
        }
    }

    async remove() {
        for await (const name of this.#folder.keys()) await this.#folder.removeEntry(name);
        this.index = { base: null, files: {} };
    }

    // Completes a file through `receive`, and returns it.
    async complete(path, size, receive) {
        const name = encodeURIComponent(path);
        const known = this.index.files[path];
        const handle = await this.#folder.getFileHandle(name, { create: true });
        if (!known?.complete) {
            const sink = new Stored(await handle.createSyncAccessHandle(), known?.tag);
            // Without a known size nothing says how much is missing.
            if (size === undefined) sink.reset();
            let complete = false;
            try {
                await receive(sink);
                complete = true;
            } catch (error) {
                throw error.name === "QuotaExceededError" ? await full() : error;
            } finally {
                sink.close();
                this.index.files[path] = { tag: sink.tag, complete };
                await this.#write();
            }
        }
        return handle.getFile();
    }

    // Fails if a download of this many more bytes cannot succeed.
    async reserve(bytes) {
        const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
        if (bytes > quota - usage) {
            throw new Failure(
                `the model needs ${megabytes(bytes)} more in the browser's storage, which keeps ${megabytes(usage)} of at most ${megabytes(quota)} for this page`,
            );
        }
    }
}
