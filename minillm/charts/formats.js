// Numbers for people, said as in Python: charts/ink.py and minillm/units.py.

// Powers of two, without ".0": 12130816 -> "11.6 MiB", 16384 -> "16 KiB", 48 -> "48 B".
export function formatBytes(n) {
  if (Math.abs(n) < 1024) return `${Math.round(n)} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  n /= 1024;
  while (Math.abs(n) >= 1023.95 && units.length > 1) { n /= 1024; units.shift(); }
  return `${n.toFixed(1)} ${units[0]}`.replace(".0 ", " ");
}

// Three digits and a unit: 0.00241 -> "2.41 ms", 3.2e9 -> "3.2 GB/s".
const inUnits = (units) => (x) => {
  const fits = ([, size]) => Math.abs(x) >= 0.9995 * size; // 999.6 µs is said as 1 ms
  const [unit, scale] = units.find(fits) || units.at(-1);
  return `${threeDigits(x / scale)} ${unit}`;
};
export const formatSeconds = inUnits([["s", 1], ["ms", 1e-3], ["µs", 1e-6]]);
export const formatRate = inUnits(
  [["TB/s", 1e12], ["GB/s", 1e9], ["MB/s", 1e6], ["kB/s", 1e3], ["B/s", 1]]);

function threeDigits(x) {
  return Math.abs(x) >= 99.95 ? x.toFixed(0) : String(Number(x.toPrecision(3)));
}

// "43 %"; a part that is there but small is "< 1 %", never "0 %".
export function formatPercent(part, whole = 1) {
  const share = whole ? (100 * part) / whole : 0;
  return share > 0 && share < 0.5 ? "< 1 %" : `${share.toFixed(0)} %`;
}
