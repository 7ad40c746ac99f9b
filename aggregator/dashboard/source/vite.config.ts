// Builds into ../built: one page, one script, one style sheet, and a stamp that says which sources they were made of.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

// The same list as in aggregator/dashboard/site.py, which compares the digest in the tests.
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"];
const here = fileURLToPath(new URL(".", import.meta.url));

function digestOfSources(): string {
  const inside = readdirSync(`${here}src`, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`.slice(here.length));
  const files = [...SOURCES, ...inside].sort();
  const whole = createHash("sha256");
  for (const name of files) {
    whole.update(`${name}\n`).update(createHash("sha256").update(readFileSync(here + name)).digest());
  }
  return whole.digest("hex");
}

function stamp(): Plugin {
  return {
    name: "stamp",
    generateBundle() {
      const source = `${JSON.stringify({ sources: digestOfSources() })}\n`;
      this.emitFile({ type: "asset", fileName: "build.json", source });
    },
  };
}

export default defineConfig({
  plugins: [stamp()],
  publicDir: false,
  build: {
    outDir: "../built",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // the policy of the page allows no data: addresses
    cssCodeSplit: false,
  },
  server: { proxy: { "/api": process.env["FEDFLEET_SERVER"] ?? "http://127.0.0.1:8080" } },
});
