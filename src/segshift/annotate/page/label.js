// What operations do to a label, for showing them before the server has saved them, and for undoing them.

const same = (a, b) => a[0] === b[0] && a[1] === b[1] && a[2] === b[2];
const including = (names, name, wanted) => (wanted ? [...names.filter((n) => n !== name), name] : names.filter((n) => n !== name));

// The label after some operations; the server's operations.py says the same.
export function applied(label, ops) {
  let { tags, points, complete, dismissed } = label;
  for (const op of ops) {
    if (op.kind === "complete") complete = op.value;
    else if (op.kind === "suggestion") dismissed = including(dismissed, op.name, op.dismissed);
    else if (op.kind === "point" && !op.present) points = points.filter((p) => !same(p, [op.x, op.y, op.name]));
    else if (op.kind === "tag" && !op.present) {
      tags = including(tags, op.name, false);
      points = points.filter((p) => p[2] !== op.name);
    } else {
      const point = [op.x, op.y, op.name];
      if (op.kind === "point" && !points.some((p) => same(p, point))) points = [...points, point];
      tags = including(tags, op.name, true);
      dismissed = including(dismissed, op.name, false);
    }
  }
  return { ...label, tags, points, complete, dismissed };
}

// Operations that bring back what `ops` change in a label. Of other classes nothing is touched: another page may have changed them.
export function inverse(label, ops) {
  const after = applied(label, ops), back = [];
  for (const name of new Set(ops.filter((op) => op.name !== undefined).map((op) => op.name))) {
    const was = label.tags.includes(name), is = after.tags.includes(name);
    for (const [x, y, c] of after.points) {
      if (c === name && !label.points.some((p) => same(p, [x, y, c]))) back.push({ kind: "point", name, x, y, present: false });
    }
    if (is && !was) back.push({ kind: "tag", name, present: false });
    if (was && !is) back.push({ kind: "tag", name, present: true });
    for (const [x, y, c] of label.points) {
      if (c === name && !after.points.some((p) => same(p, [x, y, c]))) back.push({ kind: "point", name, x, y, present: true });
    }
    const dismissed = label.dismissed.includes(name);
    if (dismissed !== after.dismissed.includes(name)) back.push({ kind: "suggestion", name, dismissed });
  }
  if (label.complete !== after.complete) back.push({ kind: "complete", value: label.complete });
  return back;
}

// Suggested classes that the person has neither confirmed nor dismissed. On a complete image nothing is left to suggest.
export function pending(label) {
  if (label.complete) return [];
  return (label.suggested ?? []).filter((name) => !label.tags.includes(name) && !label.dismissed.includes(name));
}

export const progressOf = (label) => (label.complete ? 2 : label.tags.length || label.points.length ? 1 : 0);
