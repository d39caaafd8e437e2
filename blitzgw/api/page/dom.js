// Making and changing elements. Whatever comes from the cluster or a model gets in as text only.

/** Return a new element; strings among the children become text. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Have an element say something; hidden where there is nothing to say. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  if (element.hidden === Boolean(text)) element.hidden = !text;
}

/** Return what has it done with the next frame, once however often it is called until then. */
export function eachFrame(act) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      act();
    });
  };
}

/** Set an attribute where it differs; null takes it away. */
export function mark(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Have `parent` hold one element for each item, in order: those that stay are kept and updated. */
export function keyed(parent, items, keyOf, create, update) {
  const known = (parent.known ??= new Map());
  const wanted = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let element = known.get(key);
    if (!element) known.set(key, (element = create(item)));
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, item);
  }
  for (const [key, element] of known) {
    if (wanted.has(key)) continue;
    element.remove();
    known.delete(key);
  }
}

/** Return an element of children by name, which `element.parts` then has. */
export function assembled(tag, className, parts) {
  const element = make(tag, className, ...Object.values(parts));
  element.parts = parts;
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return a bar for `fill`. */
export function bar(label) {
  const svg = document.createElementNS(SVG, "svg");
  const there = document.createElementNS(SVG, "path");
  svg.append(there);
  svg.setAttribute("class", "bar");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "meter");
  svg.setAttribute("aria-label", label);
  svg.setAttribute("aria-valuemin", "0");
  return svg;
}

/** Fill a bar of `total` with runs [from, to); `told` says it in words. */
export function fill(svg, runs, total, told) {
  const length = Math.max(total, 1e-9);
  const path = runs.map(([from, to]) => `M${from} 0H${to}V1H${from}z`).join("");
  mark(svg, "viewBox", `0 0 ${length} 1`);
  mark(svg.firstChild, "d", path);
  mark(svg, "aria-valuemax", total);
  mark(svg, "aria-valuenow", runs.reduce((sum, [from, to]) => sum + to - from, 0));
  mark(svg, "aria-valuetext", told);
}
