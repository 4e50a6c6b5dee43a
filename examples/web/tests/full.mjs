// Loads a model folder of any size from the disk into the page and generates an image, with times and memory:
//     python examples/web/tests/make_full.py target/full
//     TOOLS=target/tools node examples/web/tests/full.mjs SITE target/full cpu|webgpu PNG
// WebGPU is SwiftShader, on the processor. Not part of CI.

import { createRequire } from "node:module";
import path from "node:path";
import { serve } from "./server.mjs";

const { chromium } = createRequire(`${path.resolve(process.env.TOOLS)}/`)("playwright-core");
const [site, folder, device, png] = process.argv.slice(2);
const server = await serve({ "/": path.resolve(site) });
const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-unsafe-webgpu", "--ignore-gpu-blocklist", "--use-webgpu-adapter=swiftshader"],
});
const page = await browser.newPage();
page.on("console", (message) => console.log(`console: ${message.text()}`));
page.setDefaultTimeout(3_600_000);

// Waits until the page says something else than progress.
async function settled(began) {
    for (;;) {
        const seen = await page.evaluate(() => ({
            status: document.getElementById("status").textContent,
            error: document.getElementById("error").hidden ? null : document.getElementById("message").textContent,
        }));
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        if (seen.error) throw new Error(`${seconds} s: ${seen.error}`);
        if (!["Loading the model.", "Loading the program."].includes(seen.status)) return { ...seen, seconds };
        await new Promise((resolve) => setTimeout(resolve, 200));
    }
}

try {
    const ready = async (began, start) => {
        for (;;) {
            const seen = await settled(began);
            if (seen.status.startsWith(start)) return seen;
            await new Promise((resolve) => setTimeout(resolve, 200));
        }
    };
    await page.goto(server.origin);
    await ready(performance.now(), "Painted");
    if (device === "webgpu") {
        await page.waitForSelector("#device option[value=webgpu]:not([disabled])", { state: "attached" });
        await page.selectOption("#device", "webgpu");
        await ready(performance.now(), "Painted");
    }
    await page.click("#tab-other");
    const began = performance.now();
    await page.setInputFiles("#folder", path.resolve(folder));
    const loaded = await settled(began);
    console.log(`loaded after ${loaded.seconds} s. ${await page.textContent("#size")}`);
    const { status, seconds } = await ready(began, "Painted");
    console.log(`${status} ${seconds} s in all`);
    const download = page.waitForEvent("download");
    await page.click("#save");
    await (await download).saveAs(png);
} catch (error) {
    console.log(error.message);
    process.exitCode = 1;
} finally {
    await browser.close();
    server.close();
}
