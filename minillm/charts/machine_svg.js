// SVG by hand: parts that are made once, and attributes that are written only if they change.

const SVG_SPACE = "http://www.w3.org/2000/svg";

export function svgPart(tag, attributes = {}, parent = null) {
  const part = document.createElementNS(SVG_SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
  if (parent) parent.appendChild(part);
  return part;
}

export const setText = (part, text) => { if (part.textContent !== text) part.textContent = text; };

export const setAttr = (part, name, value) => {
  if (part.getAttribute(name) !== String(value)) part.setAttribute(name, value);
};

// How wide words are, in em.
const textRuler = { context: null, known: new Map() };

export function textWidth(text, bold = false) {
  textRuler.context ||= document.createElement("canvas").getContext("2d");
  const key = `${bold}${text}`, { context, known } = textRuler;
  if (!known.has(key)) {
    if (known.size > 2000) known.clear();
    context.font = `${bold ? 600 : 400} 100px system-ui, sans-serif`;
    known.set(key, context.measureText(text).width / 100);
  }
  return known.get(key);
}

// The fullest wording that fits into `room` em; the last one if none does.
export const fitting = (wordings, room) =>
  wordings.find((words) => textWidth(words) <= room) ?? wordings.at(-1);
