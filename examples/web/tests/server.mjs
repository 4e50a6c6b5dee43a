// A static web server with ranges, a strict content security policy, and faults on demand.

import { createServer } from "node:http";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import path from "node:path";

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".wasm": "application/wasm", ".json": "application/json" };
const POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'";

// Serves the folders by prefix: { "/": site, "/models/tiny/": folder }.
export async function serve(folders) {
    const server = {
        // Requests as "METHOD path range".
        log: [],
        // Path → number of bytes after which the connection breaks, once.
        cuts: new Map(),
        // Path → contents instead of the file's.
        replaced: new Map(),
        // Path → length that is claimed.
        claims: new Map(),
        // Paths that never answer.
        stalls: new Set(),
    };
    const prefixes = Object.keys(folders).sort((a, b) => b.length - a.length);
    const http = createServer(async (request, response) => {
        const url = decodeURIComponent(new URL(request.url, "http://page").pathname);
        server.log.push([request.method, url, request.headers.range].filter(Boolean).join(" "));
        if (server.stalls.has(url)) return;
        const prefix = prefixes.find((prefix) => url.startsWith(prefix));
        const inside = url.slice(prefix.length) || "index.html";
        let bytes;
        try {
            bytes = server.replaced.get(url) ?? (await readFile(path.join(folders[prefix], path.normalize(inside))));
        } catch {
            response.writeHead(404, { "Content-Security-Policy": POLICY }).end();
            return;
        }
        bytes = Buffer.from(bytes);
        const tag = `"${createHash("sha256").update(bytes).digest("hex").slice(0, 16)}"`;
        const headers = { ETag: tag, "Accept-Ranges": "bytes", "Cache-Control": "no-store", "Content-Security-Policy": POLICY, "Content-Type": TYPES[path.extname(inside)] ?? "application/octet-stream" };
        const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
        const isSame = (request.headers["if-range"] ?? tag) === tag;
        let status = 200;
        if (from > 0 && isSame) {
            status = 206;
            headers["Content-Range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
            bytes = bytes.subarray(from);
        }
        headers["Content-Length"] = server.claims.get(url) ?? bytes.length;
        response.writeHead(status, headers);
        if (request.method === "HEAD") return response.end();
        const cut = server.cuts.get(url);
        if (cut === undefined) return response.end(bytes);
        server.cuts.delete(url);
        response.write(bytes.subarray(0, cut), () => setTimeout(() => response.destroy(), 1000));
    });
    await new Promise((resolve) => http.listen(0, "127.0.0.1", resolve));
    server.origin = `http://127.0.0.1:${http.address().port}`;
    server.close = () => {
        http.closeAllConnections();
        http.close();
    };
    return server;
}
