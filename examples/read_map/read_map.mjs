// Reads an ACT map, see docs/map-format.md, and prints what is in it: node read_map.mjs MAP.safetensors
import { createHash } from "node:crypto";
import { readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { check, fits, isTable, parseHeader } from "./map_header.mjs";

const STATISTICS = ["source_mean", "source_std", "target_mean", "target_std"], PACKED = ["gate", "projection"];
const PARTS = ["omega", "beta", "low", "high", ...STATISTICS, ...PACKED];

export function readMap(path) { // title, and sites with their tensors; throws an Error if the file is not a map
  const data = readFileSync(path), start = data.length < 8 ? Infinity : 8 + Number(data.readBigUInt64LE()), tensors = new Map();
  check(start <= data.length && start <= 8 + (1 << 20) && data[8] === 0x7b, "it is not a safetensors file, or is cut short");
  const { __metadata__: held, ...entries } = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(8, start)));
  check(isTable(held) && Object.hasOwn(held, "act.format"), "it is a safetensors file, but not an ACT map");
  const { "act.levels": levels = [], "act.sites": described, "modelspec.title": title = "", ...map } = parseHeader(held);
  let end = start; // tensors follow each other without gaps
  for (const [key, entry] of Object.entries(entries).sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0])) {
    const { dtype, shape, data_offsets: [from, to] } = entry, size = fits("count[]", shape) ? shape.reduce((a, b) => a * b, 4) : NaN;
    check(dtype === "F32" && start + from === end && to === from + size && start + to <= data.length, `its tensor ${key} is damaged`);
    tensors.set(key, { shape, values: new Float32Array(data.buffer.slice(data.byteOffset + end, data.byteOffset + (end = start + to))) });
    check(tensors.get(key).values.every(Number.isFinite), `its tensor ${key} has values that are not finite`);
  }
  const sites = described.map(({ component, name, output, segment, layout, channels }) => {
    const key = `${component}/${name}${output === null ? "" : `#${output}`}${segment ? `@${segment.end}` : ""}`, parts = {};
    for (const part of PARTS) if (tensors.has(`${key}.${part}`)) parts[part] = tensors.get(`${key}.${part}`);
    for (const part in parts) tensors.delete(`${key}.${part}`);
    const { omega, beta, low, high } = parts, shapes = [`${channels}`, ...(levels.length ? [`${levels.length},${channels}`] : [])];
    const isShape = (part) => `${parts[part].shape}` === (PACKED.includes(part) ? `${channels + 1}` : `${omega.shape}`);
    check(omega && beta && shapes.includes(`${omega.shape}`) && Object.keys(parts).every(isShape) && !low === !high
      && [0, 4].includes(STATISTICS.filter((part) => part in parts).length)
      && (!low || low.values.every((x, i) => x <= high.values[i])), `its site ${key} is damaged`);
    return { site: key, layout, channels, tensors: parts };
  });
  check(sites.length && !tensors.size && end === data.length, "it has no sites, or tensors or bytes that belong to none");
  check(!levels.length || sites.some((site) => site.tensors.omega.shape.length === 2), "it has noise levels, but no bins for them");
  const hash = map["modelspec.hash_sha256"];
  check(!hash || hash.replace(/^0x/, "") === createHash("sha256").update(data.subarray(start)).digest("hex"), "its tensors were changed");
  return { title, sites };
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) try {
  console.log(JSON.stringify(readMap(process.argv[2]), (key, v) => v instanceof Float32Array ? undefined : v, 1));
} catch (error) {
  console.error(`${process.argv[2]} is not a usable map: ${error.constructor === Error && !error.code ? error.message : "it is damaged"}.`);
  process.exitCode = 2;
}
