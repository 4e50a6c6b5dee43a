// The worker: everything that takes time. Messages are answered in order, except "stop", which ends a download.

import { Failure, Files, Memory, download } from "./files.js";
import { Storage } from "./storage.js";

// Sites from which models are loaded, if the page's policy allows them too.
const HUBS = [location.origin, "https://huggingface.co"];
// What a page can hold at most on a 32-bit address space.
const MEMORY = 4e9;
// The files of a model, with alternatives from the most to the least preferred.
const COMPONENTS = [
    ["scheduler/scheduler_config.json"],
    ["tokenizer/vocab.json", "tokenizer/tokenizer.json"],
    ["tokenizer/merges.txt", null],
    ["tokenizer/tokenizer_config.json", null],
    ["tokenizer/special_tokens_map.json", null],
    ["text_encoder/config.json"],
    ["text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors"],
    ["unet/config.json"],
    ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"],
    ["vae/config.json"],
    ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"],
];

// The two modules: for the CPU, and the larger one with WebGPU, which is fetched when it is needed first.
const MODULES = { cpu: "./pkg/examples_web.js", webgpu: "./pkg-webgpu/examples_web.js" };
const modules = {};

function program(device) {
    modules[device] ??= load(MODULES[device]);
    return modules[device];
}

async function load(url) {
    try {
        const module = await import(url);
        const { memory } = await module.default();
        return { ...module, memory };
    } catch (error) {
        const isOld = error instanceof WebAssembly.CompileError;
        const failure = new Failure(
            isOld
                ? "this browser lacks WebAssembly with 128-bit vectors (SIMD): use a newer one"
                : `the program cannot be loaded: ${error.message}`,
        );
        // Browsers do not load a module again that failed once; another worker does.
        failure.isFatal = true;
        throw failure;
    }
}

let studio = null;
// The memory of the module in use.
let memory = null;
let files = null;
let stopping = new AbortController();
// Parts of the page's own model that arrived before the network was cut.
const arrived = new Map();

const report = (path, done, size) => postMessage({ kind: "progress", path, done, size });

async function json(url) {
    const response = await fetch(url, { signal: stopping.signal });
    if (!response.ok) throw new Failure(`${url}: the server answers ${response.status}`);
    return response.json();
}

// The model that lies beside the page.
async function own() {
    const sizes = await json("files.json");
    files = new Files();
    for (const [path, size] of Object.entries(sizes)) {
        if (path.startsWith("model/")) files.add(path, await fetched(path, size));
    }
    return "model";
}

async function fetched(path, size) {
    const sink = arrived.get(path) ?? new Memory();
    arrived.set(path, sink);
    if (sink.length < size) {
        const progress = (done) => report(path, done, size);
        await download(path, sink, { size, signal: stopping.signal, progress });
    }
    return sink.blob();
}

// A model at an address, which is kept in storage.
async function at(base, device) {
    const address = new URL(base.replace(/\/?$/, "/"), location.href);
    if (!HUBS.includes(address.origin)) {
        throw new Failure(`${address.origin} is another site; this page loads from ${HUBS.join(" and ")}`);
    }
    const storage = await Storage.open();
    await storage.choose(address.href);
    const found = [];
    for (const alternatives of COMPONENTS) found.push(...(await present(address, alternatives)));
    const total = found.reduce((sum, { size }) => sum + (size ?? 0), 0);
    if (device === "cpu" && total > MEMORY) {
        throw new Failure(
            `the model's files take ${(total / 1e9).toFixed(1)} GB, and a page can use ${MEMORY / 1e9} GB on the CPU: choose a smaller model, or one in int8`,
        );
    }
    const missing = found.filter(({ path }) => !storage.index.files[path]?.complete);
    await storage.reserve(missing.reduce((sum, { size }) => sum + (size ?? 0), 0));
    files = new Files();
    for (const { path, size } of found) {
        const progress = (done) => report(path, done, size);
        const url = new URL(path, address).href;
        const receive = async (sink) => {
            if (sink.length !== size) await download(url, sink, { size, signal: stopping.signal, progress });
        };
        files.add(`model/${path}`, await storage.complete(path, size, receive));
    }
    return "model";
}

// The first file of several that the server has, with its size.
async function present(base, alternatives) {
    for (const path of alternatives) {
        if (path === null) return [];
        const url = new URL(path, base).href;
        let response;
        try {
            response = await fetch(url, { method: "HEAD", signal: stopping.signal });
        } catch (error) {
            throw stopping.signal.aborted ? error : new Failure(`${url} cannot be reached: the network is down`);
        }
        // Small files may be compressed on the way, so that their length is unknown.
        const isWeights = path.endsWith(".safetensors");
        if (response.ok) return [{ path, size: isWeights ? Number(response.headers.get("Content-Length")) : undefined }];
    }
    if (alternatives.includes(null)) return [];
    throw new Failure(`${base.href} has no ${alternatives.join(" or ")}`);
}

// Files that the user chose: a folder, whose name is dropped.
function chosen(list) {
    files = new Files();
    for (const [path, file] of list) files.add(path.replace(/^[^/]*/, "model"), file);
    const weights = list.filter(([path]) => /\.(safetensors|bin)$/.test(path));
    if (weights.length === 0) throw new Failure("the folder has no weights; choose one that contains unet, vae and text_encoder");
    return "model";
}

async function open({ model, base, list, device }) {
    stopping = new AbortController();
    studio?.free();
    studio = null;
    const { Studio, ...module } = await program(device);
    memory = module.memory;
    const root = model === "own" ? await own() : model === "at" ? await at(base, device) : chosen(list);
    postMessage({ kind: "progress", path: "the networks", done: 1, size: 1 });
    studio = await Studio.open(files, root, device === "webgpu");
    let students = [];
    if (model === "own") ({ students } = await json("page.json"));
    return { side: studio.side(), students, memory: memory.buffer.byteLength };
}

// The weights of the second student are fetched when they are needed first.
async function student(folder) {
    const sizes = await json("files.json");
    for (const [path, size] of Object.entries(sizes)) {
        if (path.startsWith(`${folder}/`) && files.size(path) < 0) files.add(path, await fetched(path, size));
    }
}

let mixed = 1;

async function paint({ prompt, negative, seed, lambda, other, edited, file }) {
    if (!studio) throw new Failure("no model is loaded");
    if (other && lambda !== mixed) {
        await student(other);
        studio.interpolate(other, lambda);
        mixed = lambda;
    }
    const began = performance.now();
    const image = await (edited
        ? studio.edit(edited, file, prompt, BigInt(seed))
        : studio.paint(prompt, negative, BigInt(seed)));
    const milliseconds = performance.now() - began;
    try {
        return { png: image.png(), warnings: image.warnings(), milliseconds, memory: memory.buffer.byteLength };
    } finally {
        image.free();
    }
}

async function remove() {
    const storage = await Storage.open();
    await storage.remove();
    return kept();
}

// The address of the model in storage and the bytes that it takes.
async function kept() {
    const storage = await Storage.open();
    const { usage = 0 } = await navigator.storage.estimate();
    return { base: storage.index.base, bytes: usage };
}

const answers = {
    open: (message) => {
        mixed = 1;
        return open(message);
    },
    paint,
    remove,
    kept,
    record: async ({ png, file }) => ({ record: (await program("cpu")).record(png, file) }),
};

// The words for anything that can go wrong.
function words(error) {
    if (error instanceof WebAssembly.RuntimeError || error instanceof RangeError) {
        const panic = globalThis.swiftbrushPanic;
        return panic
            ? `the program met a defect and has to start again: ${panic}`
            : "the page ran out of memory: close other tabs, or choose a smaller model";
    }
    if (error.name === "AbortError") return "cancelled";
    return error.message;
}

let last = Promise.resolve();
// The message that is being answered.
let current = null;

function fail(id, error) {
    const isFatal = error.isFatal || error instanceof WebAssembly.RuntimeError || error instanceof RangeError;
    postMessage({ kind: "error", id, text: words(error), isFatal });
}

// A trap within an asynchronous function of the program does not reject its promise, but ends up here.
onerror = (_message, _source, _line, _column, error) => {
    if (current === null || !error) return false;
    fail(current, error);
    return true;
};

onmessage = ({ data }) => {
    if (data.kind === "stop") {
        stopping.abort();
        return;
    }
    last = last
        .catch(() => {})
        .then(() => {
            current = data.id;
            return answers[data.kind](data);
        })
        .then(
            (answer) => postMessage({ kind: "answer", id: data.id, answer }),
            (error) => fail(data.id, error),
        )
        .finally(() => (current = null));
};
