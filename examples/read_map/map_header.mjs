// Checks the header of an ACT map. map_header.json says what it holds: key: kind, or "key!" if the key is required;
// "kind?" is also null, "kind[]" a list, "kind{}" a table of names, "one|other" one of these words.
import { readFileSync } from "node:fs";

const TABLES = JSON.parse(readFileSync(new URL("map_header.json", import.meta.url), "utf8"));
export const isTable = (v) => v !== null && typeof v === "object" && !Array.isArray(v);
const rises = (v) => v.every((x, i) => i === 0 || v[i - 1] < x), falls = (v) => rises(v.toReversed());
const KINDS = {
  number: (v) => Number.isFinite(v) && Math.abs(v) <= (2 - 2 ** -23) * 2 ** 127, // the largest float32
  whole: (v) => Number.isInteger(v) && Math.abs(v) <= 2 ** 64, count: (v) => Number.isSafeInteger(v) && v >= 0,
  text: (v) => typeof v === "string" && !/[\x00-\x08\x0b-\x1f\x7f-\x9f\p{Cs}]/u.test(v),
  name: (v) => typeof v === "string" && /^(?:[^\p{C}\p{Z}]| ){1,500}$/u.test(v),
  channels: (v) => KINDS.count(v) && v >= 1 && v <= 1 << 20, positive: (v) => KINDS.number(v) && v >= 0,
  bounded: (v) => Number.isFinite(v) && Math.abs(v) <= 1000, range: (v) => fits("number[]", v) && v.length === 2,
  levels: (v) => fits("number[]", v) && v.length <= 64 && v.every((x) => x > 0 && x <= 1) && falls(v),
  cover: (v) => fits("text[]", v) && (!v[0] || (/^\/9[g-j][A-Za-z0-9+/]*={0,2}$/.test(v[0]) && v[0].length % 4 === 0
    && Buffer.from(v[0], "base64").length <= 1 << 17)), // a JPEG file of at most 128 KiB
};
export const fits = (kind, v) => kind.endsWith("?") ? v === null || fits(kind.slice(0, -1), v)
  : kind.endsWith("[]") ? Array.isArray(v) && v.every((x) => fits(kind.slice(0, -2), x))
  : kind.endsWith("{}") ? isTable(v) && Object.entries(v).every(([key, x]) => KINDS.text(key) && fits(kind.slice(0, -2), x))
  : kind.includes("|") ? kind.split("|").includes(v) : TABLES[kind] ? isTable(v) && !misfit(kind, v) : KINDS[kind](v);
const misfit = (table, v) => Object.entries(TABLES[table]).map(([key, kind]) => [key.replace("!", ""), key.endsWith("!"), kind])
  .find(([key, needed, kind]) => Object.hasOwn(v, key) ? !fits(kind, v[key]) : needed)?.[0]; // the first key with a bad value
const isCurve = ({ strengths, effects, kept, up, down, negative }) => rises(strengths) && strengths.includes(0) && rises(up)
  && up[0] === 0 && up.length > 1 && falls(down) && !down[0] && (negative === "none" ? !down.length : down.length > 1)
  && effects.length === strengths.length && kept.length === strengths.length && Math.max(kept.length, up.length + down.length) <= 1000;

export const check = (holds, problem) => { if (!holds) throw new Error(problem); };

/** The values of the header by key. Throws an Error if one is missing or not as it must be; other keys stay texts. */
export function parseHeader(metadata) {
  const isJson = (key) => !/^modelspec|format$/.test(key) && [key, `${key}!`].some((known) => known in TABLES.metadata);
  const values = Object.fromEntries(Object.entries(metadata).map(([key, v]) => [key, isJson(key) ? JSON.parse(v) : v]));
  const wrong = misfit("metadata", values), isLater = wrong === "act.format", curve = values["act.calibration"];
  check(!wrong, isLater ? "it is of a later format, so update this reader" : `its ${wrong} is missing or damaged`);
  check(!curve || isCurve(curve), "its calibration is damaged");
  check(values["act.sites"].every((site) => !site.segment || site.layout === "tokens"), "a site has a segment, but no tokens");
  return values;
}
