// The page: what is shown, and what is asked of the worker. Nothing here takes time.

const element = (id) => document.getElementById(id);
const [prompt, negative, seed, lambda, edit] = ["prompt", "negative", "seed", "lambda", "edit"].map(element);
const device = element("device");
const [picture, caption, save, strip, status] = ["picture", "caption", "save", "strip", "status"].map(element);

// Pictures in the strip.
const MAX_PAST = 24;
// Milliseconds without typing after which a picture is added to the strip.
const REST = 700;

let worker = null;
let calls = new Map();
let count = 0;
// What the worker was last asked to open.
let opened = { model: "own", device: "cpu" };
let other = null;
let isReady = false;
// The wish that is being painted, and the one that waits for it. Only the last one counts.
let painting = null;
let waiting = null;
let shown = null;
let resting = 0;

function start() {
    worker?.terminate();
    for (const { reject } of calls.values()) reject(new Error("cancelled"));
    [calls, painting, waiting, isReady] = [new Map(), null, null, false];
    worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => {
        if (data.kind === "progress") return progress(data);
        const call = calls.get(data.id);
        calls.delete(data.id);
        if (data.kind === "answer") return call?.resolve(data.answer);
        if (data.isFatal) start();
        call?.reject(new Error(data.text));
    };
    worker.onerror = (event) => fail(`the program cannot start: ${event.message || "this browser lacks WebAssembly with SIMD, or modules in workers"}`);
}

function call(kind, message = {}) {
    count += 1;
    const id = count;
    return new Promise((resolve, reject) => {
        calls.set(id, { resolve, reject });
        worker.postMessage({ ...message, kind, id });
    });
}

function progress({ path, done, size }) {
    element("loading").hidden = false;
    element("file").textContent = size > 1 ? `${path}: ${(done / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB` : `Loading ${path}`;
    element("bar").value = size > 0 ? done / size : 1;
}

function fail(text) {
    element("loading").hidden = true;
    element("error").hidden = false;
    // Sentences begin with a capital letter, but paths do not.
    element("message").textContent = `${text.replace(/^[a-z](?=[a-z]*( |$))/, (letter) => letter.toUpperCase())}.`;
    status.textContent = "";
}

async function open(what) {
    opened = { ...what, device: device.value };
    isReady = false;
    element("error").hidden = true;
    element("loading").hidden = false;
    status.textContent = "Loading the model.";
    try {
        const { students, side, memory } = await call("open", opened);
        [element("loading").hidden, isReady] = [true, true];
        offer(students);
        element("size").textContent = `Pictures of ${side} pixels; loaded with ${(memory / 1e6).toFixed(0)} MB of memory.`;
        status.textContent = "Ready.";
        wish();
    } catch (error) {
        fail(error.message);
    }
    kept();
}

// Offers WebGPU if the page was built with it and there is one, and says what it can hold.
async function graphics() {
    const { webgpu } = await (await fetch("page.json")).json();
    element("place").hidden = !webgpu;
    if (!webgpu) return;
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
    if (!adapter) {
        element("gpu").textContent = "This browser has no WebGPU, or none for this graphics card.";
        return;
    }
    const { vendor, architecture } = adapter.info;
    const buffer = Math.min(adapter.limits.maxBufferSize, adapter.limits.maxStorageBufferBindingSize);
    element("gpu").textContent = `WebGPU: ${[vendor, architecture].filter(Boolean).join(" ") || "unnamed"}, at most ${Math.round(buffer / 1e6)} MB in a buffer.`;
    device.options[1].disabled = false;
}

// Shows λ if there are two students.
function offer(students) {
    const [a, b] = students;
    other = b?.folder ?? null;
    element("mix").hidden = !b;
    lambda.value = 1;
    element("share").textContent = "1";
    if (b) [element("name-a").textContent, element("name-b").textContent] = [a.name, b.name];
}

async function kept() {
    try {
        const { base, bytes } = await call("kept");
        element("stored").textContent = base ? `${base} is kept, ${(bytes / 1e6).toFixed(0)} MB.` : "No model is kept.";
        element("remove").disabled = !base;
    } catch {
        element("stored").textContent = "This browser keeps no files for this page.";
    }
}

// Asks for a picture of what is typed now.
function wish() {
    clearTimeout(resting);
    if (!isReady) return;
    const isEdit = edit.checked && edit.base;
    waiting = {
        prompt: prompt.value,
        negative: negative.value,
        seed: String(Math.max(0, Math.min(Number.MAX_SAFE_INTEGER, Math.trunc(Number(seed.value) || 0)))),
        lambda: Number(lambda.value),
        other,
        edited: isEdit ? edit.base.png : null,
        file: isEdit ? edit.base.file : null,
    };
    if (!painting) paint();
}

async function paint() {
    [painting, waiting] = [waiting, null];
    status.textContent = "Painting.";
    try {
        const answer = await call("paint", painting);
        show({ ...painting, ...answer, file: name(painting) });
        const took = `Painted in ${answer.milliseconds.toFixed(0)} ms, with ${(answer.memory / 1e6).toFixed(0)} MB of memory.`;
        status.textContent = [took, ...answer.warnings].join(" ");
        element("error").hidden = true;
        clearTimeout(resting);
        resting = setTimeout(keep, REST, shown);
    } catch (error) {
        if (error.message !== "cancelled") fail(error.message);
    }
    painting = null;
    if (waiting) paint();
}

const name = ({ prompt, seed }) => `${prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "picture"}-${seed}.png`;

function show(one) {
    const old = shown;
    one.url ??= URL.createObjectURL(new Blob([one.png], { type: "image/png" }));
    shown = one;
    picture.src = one.url;
    picture.alt = `Painted: ${one.prompt || "nothing"}`;
    picture.onload = () => {
        picture.classList.toggle("small", picture.naturalWidth <= 128);
        if (old && old !== shown && !old.isKept) URL.revokeObjectURL(old.url);
    };
    caption.textContent = `“${one.prompt}”, seed ${one.seed}${one.lambda < 1 ? `, λ ${one.lambda}` : ""}`;
    save.href = one.url;
    save.download = one.file;
    save.setAttribute("aria-disabled", "false");
}

// Adds a picture to the strip; a click brings it back.
function keep(one) {
    if (one.isKept) return;
    one.isKept = true;
    const button = document.createElement("button");
    const image = document.createElement("img");
    [button.type, image.src, image.alt] = ["button", one.url, ""];
    image.className = picture.className;
    button.setAttribute("aria-label", `Back to “${one.prompt}”, seed ${one.seed}`);
    button.append(image);
    button.onclick = () => back(one);
    const item = document.createElement("li");
    item.append(button);
    strip.prepend(item);
    item.forgotten = one;
    while (strip.children.length > MAX_PAST) {
        const { forgotten } = strip.lastChild;
        if (forgotten !== shown) URL.revokeObjectURL(forgotten.url);
        strip.lastChild.remove();
    }
}

function back(one) {
    [prompt.value, negative.value, seed.value, lambda.value, edit.checked] = [one.prompt, one.negative, one.seed, one.lambda, false];
    element("share").textContent = one.lambda;
    show(one);
    status.textContent = "An earlier picture.";
}

for (const input of [prompt, negative, seed]) input.addEventListener("input", wish);
lambda.addEventListener("input", () => {
    element("share").textContent = lambda.value;
    wish();
});
element("wish").addEventListener("submit", (event) => {
    event.preventDefault();
    seed.value = Number(seed.value) + 1;
    wish();
});
edit.addEventListener("change", () => {
    // The picture that is shown now stays the one that is edited.
    edit.base = edit.checked ? shown : null;
    if (edit.base) keep(edit.base);
    if (!edit.checked) wish();
});
save.addEventListener("click", (event) => {
    if (!shown) event.preventDefault();
    else keep(shown);
});
element("open").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (!file) return;
    try {
        const png = new Uint8Array(await file.arrayBuffer());
        const record = JSON.parse((await call("record", { png, file: file.name })).record);
        const one = { png, file: file.name, prompt: record.prompt, negative: record.negative_prompt, seed: String(record.seed), lambda: record.interpolation?.lambda ?? 1 };
        back(one);
        keep(one);
        status.textContent = `${file.name}, made by ${record.software}.`;
    } catch (error) {
        fail(error.message);
    }
});
document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && (painting || !isReady)) cancel();
});

// Ends a download, or a picture that is being painted: the worker cannot be interrupted, so another one takes its place.
function cancel() {
    if (!isReady) return worker.postMessage({ kind: "stop" });
    start();
    open(opened);
}
element("stop").addEventListener("click", cancel);
element("again").addEventListener("click", () => open(opened));

const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab) {
    for (const one of tabs) {
        const isSelected = one === tab;
        one.setAttribute("aria-selected", String(isSelected));
        one.tabIndex = isSelected ? 0 : -1;
        element(one.getAttribute("aria-controls")).hidden = !isSelected;
    }
    tab.focus();
    if (tab.id === "tab-own" && opened.model !== "own") open({ model: "own" });
}
for (const tab of tabs) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
        if (step) select(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
    });
}
device.addEventListener("change", () => open(opened));
element("folder").addEventListener("change", ({ target }) => {
    const list = [...target.files].map((file) => [file.webkitRelativePath, file]);
    if (list.length > 0) open({ model: "chosen", list });
});
element("address").addEventListener("submit", (event) => {
    event.preventDefault();
    open({ model: "at", base: element("base").value });
});
element("remove").addEventListener("click", async () => {
    await call("remove");
    kept();
});

start();
open(opened);
// Without a network the page has said so already.
graphics().catch(() => {});
