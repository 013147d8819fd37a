// Which key does what. Classes take the digits, then letters, those under the left hand first.

const DIGITS = "1234567890";
const LETTERS = "qwertasdgzvbyiophjkm";
const COMMANDS = {
  Enter: "done", "Shift Enter": "nothing", Backquote: "done", " ": "next", "Shift  ": "previous", ArrowRight: "next", ArrowLeft: "previous",
  n: "unlabelled", u: "undo", "Shift u": "redo", "Ctrl z": "undo", "Ctrl Shift z": "redo", "Ctrl y": "redo",
  x: "delete", Delete: "delete", Backspace: "delete", c: "complete", f: "fit", l: "lighter", "+": "in", "=": "in", "-": "out", "?": "help",
};

// Keys of the first classes; the rest of a long list is there for the mouse.
export const classKeys = (count) => [...DIGITS, ...LETTERS].slice(0, count);

// The key of an event: a letter in lower case, a digit by its place (with Shift, and on French keyboards without, it types another sign).
function keyOf(event) {
  if (event.code === "Backquote") return "Backquote";
  // Without Num Lock the keys of the number block are arrows.
  if (/^Digit\d$/.test(event.code) || (/^Numpad\d$/.test(event.code) && /^\d$/.test(event.key))) return event.code.slice(-1);
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  // Letters of other scripts: by their place.
  if (event.key.length === 1 && /^Key[A-Z]$/.test(event.code)) return event.code.slice(-1).toLowerCase();
  return event.key;
}

// What a key press means: {command}, {index (of a class), shift}, or null.
export function meaning(event, keys) {
  if (event.altKey) return null;
  const key = keyOf(event), control = event.ctrlKey || event.metaKey;
  const index = keys.indexOf(key);
  if (index >= 0 && !control) return { index, shift: event.shiftKey };
  // "+" and "?" need Shift on most keyboards.
  const shift = event.shiftKey && !/^[+=?-]$/.test(key);
  const command = COMMANDS[`${control ? "Ctrl " : ""}${shift ? "Shift " : ""}${key}`];
  return command ? { command } : null;
}
