// Drives the page in headless Chromium: node page.mjs SITE INT8 OUTPUT. SITE is the folder of `build`, and INT8 a tiny model in
// int8; OUTPUT receives pictures, which `verify` compares with those of the native program, a tiny model in f16, and screenshots.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { halve } from "./half.mjs";
import { limited } from "./limit.mjs";
import { serve } from "./server.mjs";

// TOOLS is the folder with node_modules, which is not in the repository.
const { chromium } = createRequire(`${path.resolve(process.env.TOOLS)}/`)("playwright-core");

const [site, int8, output] = process.argv.slice(2).map((folder) => path.resolve(folder));
const root = path.resolve(fileURLToPath(import.meta.url), "../../../..");
const tiny = path.join(root, "crates/pipeline/tests/golden/model");
rmSync(output, { recursive: true, force: true });
mkdirSync(output, { recursive: true });
const f16 = path.join(output, "tiny-f16");
halve(tiny, f16);

const UNET = "/model/unet/diffusion_pytorch_model.safetensors";
const TINY = "/models/f16/unet/diffusion_pytorch_model.safetensors";
// Milliseconds for which the page's own thread may be busy. Chromium reports longer tasks.
const LONGEST = 50;
// Milliseconds after which a test fails. 25 steps with guidance on SwiftShader take 90 s on a busy machine.
const PATIENCE = 300_000;
const SHOWN = [
    "a yellow heart on a purple background",
    "a green ring to the left of a red square on a white background",
    "an orange star on a black background",
    "a pink circle above a blue star on a yellow background",
];
const PROMPT = "a red circle above a green star on a white background";

const server = await serve({ "/": site, "/models/f16/": f16, "/models/int8/": int8 });
const launch = (...more) =>
    chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", ...more],
    });
const browser = await launch();

// What went wrong in the pages of a test.
let errors = [];

// A page without a past: no cache, no storage.
async function fresh(options = {}, where = browser) {
    const context = await where.newContext({ viewport: { width: 800, height: 900 }, acceptDownloads: true, ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(120_000);
    context.on("request", (request) => {
        const { origin, protocol } = new URL(request.url());
        if (protocol !== "blob:" && origin !== server.origin) errors.push(new Error(`a request to ${request.url()}`));
    });
    page.on("pageerror", (error) => errors.push(error));
    page.on("console", (message) => message.type() === "error" && console.log(`   console: ${message.text()}`));
    return page;
}

const text = (page, id) => page.locator(`#${id}`).textContent();

// Waits until something holds in the page. Playwright's own function needs `eval`, which the policy forbids.
async function until(page, what, holds, argument) {
    const end = Date.now() + PATIENCE;
    while (!(await page.evaluate(holds, argument))) {
        const seen = `status “${await text(page, "status")}”, error “${await text(page, "message")}”`;
        assert.ok(Date.now() < end, `waited too long until ${what}: ${seen}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

const painted = (page) =>
    until(page, "it is painted", () => document.getElementById("status").textContent.startsWith("Painted"));
const captioned = (page, caption) =>
    until(page, `the caption is ${caption}`, (caption) => document.getElementById("caption").textContent === caption, caption);
const sized = (page, side) =>
    until(page, `the picture has ${side} pixels`, (side) => document.getElementById("picture").naturalWidth === side, side);
const failed = (page, expected) =>
    until(
        page,
        `it fails with ${expected}`,
        (expected) => !document.getElementById("error").hidden && new RegExp(expected).test(document.getElementById("message").textContent),
        expected.source,
    );

async function type(page, prompt, seed) {
    await page.fill("#seed", String(seed));
    await page.fill("#prompt", prompt);
    await captioned(page, `“${prompt}”, seed ${seed}`);
    await painted(page);
}

async function mix(page, lambda) {
    await page.locator("#lambda").evaluate((slider, lambda) => {
        slider.value = lambda;
        slider.dispatchEvent(new Event("input"));
    }, lambda);
}

async function save(page, name) {
    const waiting = page.waitForEvent("download");
    await page.click("#save");
    const file = path.join(output, name);
    await (await waiting).saveAs(file);
    return file;
}

async function ownModel(page) {
    await page.goto(server.origin);
    await painted(page);
}

const WEBGPU = "WebGPU paints the same, and what it cannot do is said in words";
const tests = {
    async "a caption becomes a picture, which is saved with its record and opened again"() {
        const page = await fresh();
        await page.addInitScript(() => {
            window.longest = 0;
            new PerformanceObserver((list) => {
                for (const { duration } of list.getEntries()) window.longest = Math.max(window.longest, duration);
            }).observe({ type: "longtask" });
        });
        const began = performance.now();
        await ownModel(page);
        console.log(`   first picture after ${Math.round(performance.now() - began)} ms`);
        assert.ok(!server.log.some((line) => line.includes("/second/")), "nothing is fetched before it is needed");
        await until(
            page,
            "it says that there is no WebGPU",
            (isBuilt) => (isBuilt ? document.getElementById("gpu").textContent.startsWith("This browser has no") : document.getElementById("place").hidden),
            existsSync(path.join(site, "pkg-webgpu")),
        );
        assert.ok(await page.locator("#device option[value=webgpu]").isDisabled());
        await type(page, "a blue square", 7);
        console.log(`   ${await text(page, "size")} ${await text(page, "status")}`);
        const file = await save(page, "generated.png");
        await type(page, PROMPT, 4);
        await until(page, "the strip has both", () => document.querySelectorAll("#strip li").length >= 2);
        await save(page, "captioned.png");
        // A page that computes is blocked by every picture; a busy machine only by some.
        const blocked = [];
        for (const seed of [3, 5, 4]) {
            await page.evaluate("window.longest = 0");
            await type(page, PROMPT, seed);
            blocked.push(await page.evaluate("window.longest"));
        }
        assert.ok(Math.min(...blocked) < LONGEST, `the page was blocked for ${blocked} ms`);
        await page.getByLabel("Back to “a blue square”, seed 7").click();
        assert.equal(await page.inputValue("#prompt"), "a blue square", "the strip brings it back");
        await page.fill("#prompt", "");
        await page.setInputFiles("#open", file);
        await until(page, "it is read", () => document.getElementById("status").textContent.includes("made by swiftbrush"));
        assert.deepEqual([await page.inputValue("#prompt"), await page.inputValue("#seed")], ["a blue square", "7"]);
        await page.context().close();
    },

    async "typing fast ends with the last caption"() {
        const page = await fresh();
        await ownModel(page);
        await page.fill("#prompt", "");
        await page.locator("#prompt").pressSequentially("a green star on a black background", { delay: 5 });
        await captioned(page, "“a green star on a black background”, seed 0");
        await page.context().close();
    },

    async "λ mixes two students, and an edit starts from a picture"() {
        const page = await fresh();
        await ownModel(page);
        for (const caption of SHOWN) {
            const count = await page.locator("#strip li").count();
            await type(page, caption, 7);
            await page.locator("#strip li").nth(count).waitFor();
        }
        const broken = await page.locator("#strip img").evaluateAll((images) => images.filter((image) => image.naturalWidth === 0).length);
        assert.equal(broken, 0, "every earlier picture is shown");
        await page.screenshot({ path: path.join(output, "light.png") });
        await type(page, "a blue square", 7);
        assert.equal(await page.isVisible("#mix"), true);
        await mix(page, 0.5);
        await captioned(page, "“a blue square”, seed 7, λ 0.5");
        const mixed = await save(page, "interpolated.png");
        await mix(page, 1);
        await captioned(page, "“a blue square”, seed 7");
        await save(page, "before.png");
        const name = await page.getAttribute("#save", "download");
        await page.check("#edit");
        await type(page, "a red square", 7);
        await save(page, "edited.png");
        assert.equal(name, "a-blue-square-7.png");
        await page.setInputFiles("#open", mixed);
        await captioned(page, "“a blue square”, seed 7, λ 0.5");
        await page.context().close();
    },

    async "a cut network is said in words, and the download resumes"() {
        const page = await fresh();
        server.cuts.set(UNET, 3_000_000);
        await page.goto(server.origin);
        await failed(page, /network was cut at 3\.0 MB of \d/);
        server.log.length = 0;
        await page.click("#again");
        await painted(page);
        assert.deepEqual(server.log.filter((line) => line.includes(UNET)), [`GET ${UNET} bytes=3000000-`]);
        await page.context().close();
    },

    async "a download is cancelled"() {
        const page = await fresh();
        server.stalls.add(UNET);
        await page.goto(server.origin);
        await until(page, "it downloads", () => document.getElementById("file").textContent.startsWith("model/"));
        await page.keyboard.press("Escape");
        await failed(page, /^Cancelled/);
        server.stalls.delete(UNET);
        await page.click("#again");
        await painted(page);
        await page.context().close();
    },

    async "damage is said in words"() {
        const page = await fresh();
        server.replaced.set("/model/unet/config.json", "{");
        server.replaced.set("/files.json", JSON.stringify({ "model/unet/config.json": 1, "model/scheduler/scheduler_config.json": 2 }));
        server.replaced.set("/model/scheduler/scheduler_config.json", "{}");
        await page.goto(server.origin);
        await failed(page, /model\/unet\/config\.json/);
        server.replaced.clear();
        await page.context().close();
    },

    async "memory that does not suffice is said in words, and the page starts again"() {
        const page = await fresh();
        const module = "pkg/examples_web_bg.wasm";
        server.replaced.set(`/${module}`, limited(readFileSync(path.join(site, module)), 8_000_000));
        await page.goto(server.origin);
        await failed(page, /^The page ran out of memory/);
        server.replaced.clear();
        await page.click("#again");
        await painted(page);
        await page.context().close();
    },

    async "the twenty lines of the guide paint"() {
        const guide = readFileSync(path.join(root, "crates/swiftbrush/guide/browser.md"), "utf8");
        const block = (language) => guide.match(new RegExp("```" + language + "\n(.*?)```", "s"))[1];
        const [html, script] = [block("html"), block("js")];
        assert.ok(html.trim().split("\n").length + script.trim().split("\n").length <= 20);
        server.replaced.set("/embed.html", html);
        server.replaced.set("/embed.js", script);
        const page = await fresh();
        await page.goto(`${server.origin}/embed.html`);
        const first = await page.locator("#picture[src]").getAttribute("src");
        await page.fill("#prompt", "a blue square");
        await page.locator(`#picture:not([src="${first}"])`).waitFor();
        server.replaced.clear();
        await page.context().close();
    },

    async "a model at an address resumes, stays in storage, and is removed"() {
        const page = await fresh();
        await ownModel(page);
        await page.click("#tab-other");
        await page.fill("#base", "models/f16");
        server.cuts.set(TINY, 20_000);
        await page.click("#address button");
        await failed(page, /network was cut/);
        server.log.length = 0;
        await page.click("#again");
        await sized(page, 16);
        assert.ok(server.log.includes(`GET ${TINY} bytes=20000-`), `${server.log}`);
        await page.reload();
        await painted(page);
        await page.click("#tab-other");
        await page.fill("#base", "models/f16");
        server.log.length = 0;
        await page.click("#address button");
        await sized(page, 16);
        assert.ok(!server.log.some((line) => line.startsWith("GET /models/")), `${server.log}`);
        await until(page, "it says so", () => document.getElementById("stored").textContent.includes("models/f16"));
        await type(page, "a cat", 5);
        await save(page, "f16.png");
        await page.click("#remove");
        await until(page, "it is removed", () => document.getElementById("stored").textContent === "No model is kept.");
        await page.context().close();
    },

    async "a model in int8 comes from an address, and one in f16 from the disk"() {
        const page = await fresh();
        await ownModel(page);
        await page.click("#tab-other");
        await page.fill("#base", "models/int8");
        await page.click("#address button");
        await sized(page, 16);
        await type(page, "a cat", 5);
        await save(page, "int8.png");
        await page.setInputFiles("#folder", f16);
        await until(page, "it is loaded", () => document.getElementById("status").textContent.startsWith("Painted"));
        await type(page, "a cat", 6);
        await save(page, "disk.png");
        await page.context().close();
    },

    async [WEBGPU]() {
        const graphics = await launch("--enable-unsafe-webgpu", "--ignore-gpu-blocklist", "--use-webgpu-adapter=swiftshader");
        try {
            const page = await fresh({}, graphics);
            await ownModel(page);
            await until(page, "there is a GPU", () => document.getElementById("gpu").textContent.startsWith("WebGPU: "));
            console.log(`   ${await text(page, "gpu")}`);
            await page.selectOption("#device", "webgpu");
            await painted(page);
            await type(page, "a blue square", 7);
            console.log(`   ${await text(page, "status")}`);
            await save(page, "webgpu.png");
            await type(page, "a cat", 5);
            await page.click("#tab-other");
            await page.fill("#base", "models/f16");
            await page.click("#address button");
            await sized(page, 16);
            await painted(page);
            await save(page, "webgpu-f16.png");
            await page.fill("#base", "models/int8");
            await page.click("#address button");
            await failed(page, /int8/);
        } finally {
            await graphics.close();
        }
    },

    async "storage that is full, and a model that does not fit, are said in words"() {
        const page = await fresh();
        await ownModel(page);
        const session = await page.context().newCDPSession(page);
        await session.send("Storage.overrideQuotaForOrigin", { origin: server.origin, quotaSize: 50_000 });
        await page.click("#tab-other");
        await page.fill("#base", "models/f16");
        await page.click("#address button");
        await failed(page, /browser's storage/);
        server.claims.set(TINY, 6_000_000_000);
        await page.click("#address button");
        await failed(page, /take 6\.0 GB, and a page can use 4 GB/);
        server.claims.clear();
        await page.fill("#base", "models/none");
        await page.click("#address button");
        await failed(page, /has no scheduler\/scheduler_config\.json/);
        await page.context().close();
    },

    async "it fits a narrow dark screen, and works by keyboard with labels"() {
        const page = await fresh({ viewport: { width: 360, height: 780 }, colorScheme: "dark" });
        await ownModel(page);
        const width = await page.evaluate(() => document.scrollingElement.scrollWidth);
        assert.ok(width <= 360, `${width} pixels`);
        await page.screenshot({ path: path.join(output, "dark.png"), fullPage: true });
        const unlabelled = await page.evaluate(() =>
            [...document.querySelectorAll("input, textarea, button, select")]
                .filter((one) => !one.labels?.length && !one.getAttribute("aria-label") && !one.textContent.trim())
                .map((one) => one.id),
        );
        assert.deepEqual(unlabelled, []);
        await page.focus("#tab-own");
        await page.keyboard.press("ArrowRight");
        assert.equal(await page.evaluate(() => document.activeElement.id), "tab-other");
        assert.equal(await page.isVisible("#panel-other"), true);
        const wide = await page.evaluate(() => document.scrollingElement.scrollWidth);
        assert.ok(wide <= 360, `${wide} pixels`);
        await page.context().close();
    },
};

// The module with WebGPU is not built by default.
if (!existsSync(path.join(site, "pkg-webgpu"))) delete tests[WEBGPU];

let n_failed = 0;
const only = process.env.ONLY;
for (const [name, test] of Object.entries(tests)) {
    if (only && !name.includes(only)) continue;
    errors = [];
    try {
        await test();
        assert.deepEqual(errors, []);
        console.log(`ok ${name}`);
    } catch (error) {
        n_failed += 1;
        console.log(`FAILED ${name}\n${error.stack}`);
        for (const context of browser.contexts()) {
            for (const page of context.pages()) await page.screenshot({ path: path.join(output, "failed.png") }).catch(() => {});
            await context.close();
        }
        for (const faults of [server.cuts, server.replaced, server.claims, server.stalls]) faults.clear();
    }
}
await browser.close();
server.close();
process.exitCode = n_failed > 0 ? 1 : 0;
