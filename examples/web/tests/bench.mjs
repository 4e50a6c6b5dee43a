// Times the page's module in node, on one thread: node bench.mjs SITE [COUNT]. Prints the median and the range of the times to
// generate an image, from the prompt to the pixels.

import { readFileSync, readdirSync, statSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const site = path.resolve(process.argv[2]);
const count = Number(process.argv[3] ?? 50);

// The page's `Files`, on the file system.
const files = {
    size(file) {
        const found = statSync(path.join(site, file), { throwIfNoEntry: false });
        return found?.isFile() ? found.size : -1;
    },
    read: (file, start, end) => new Uint8Array(readFileSync(path.join(site, file)).subarray(start, end)),
    paths: () => readdirSync(path.join(site, "model"), { recursive: true }).map((name) => path.join("model", name)),
};

const began = performance.now();
const { default: init, Studio } = await import(pathToFileURL(path.join(site, "pkg/examples_web.js")));
await init({ module_or_path: readFileSync(path.join(site, "pkg/examples_web_bg.wasm")) });
const compiled = performance.now();
const studio = await Studio.open(files, "model", false);
console.log(`module ${(compiled - began).toFixed(0)} ms, model ${(performance.now() - compiled).toFixed(0)} ms`);
const times = [];
for (let seed = 0; seed <= count; seed++) {
    const start = performance.now();
    (await studio.paint("a red circle above a green star on a white background", "", BigInt(seed))).free();
    times.push(performance.now() - start);
}
// The first one is slower: it is compiled while it runs.
const [first, ...rest] = times;
rest.sort((a, b) => a - b);
const show = (index) => rest[Math.min(Math.round(index * rest.length), rest.length - 1)].toFixed(1);
console.log(`image: first ${first.toFixed(0)} ms, then median ${show(0.5)} ms, from ${show(0)} to ${show(1)} ms, ${count} images`);
